"""
Writes docs/reference.md from the signatures and docstrings of the public names, and the
entries of docs/options.md from the options in settings.py.

    python scripts/reference.py            writes the pages
    python scripts/reference.py --check    exits with 1 if one is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tornado_compas_session as package  # noqa: E402
from tornado_compas_session import testing  # noqa: E402
from tornado_compas_session.core import protocols, types  # noqa: E402
from tornado_compas_session.settings import OPTIONS, SessionOptions  # noqa: E402
from tornado_compas_session.stores import cleaner, migrations  # noqa: E402
from tornado_compas_session.testing import embedded  # noqa: E402

PAGE = ROOT / "docs" / "reference.md"
OPTIONS_PAGE = ROOT / "docs" / "options.md"

HEAD = """\
# Reference

<!-- Written by scripts/reference.py from the docstrings; change those. -->

Everything here is imported from `tornado_compas_session`, unless it says otherwise.
Names that are not on this page are not for use by applications.
"""

#: The order of the page; a public name that is in no group is an error.
GROUPS: dict[str, list[str]] = {
    "Handlers": ["SessionMixin", "Session"],
    "Applications": ["session_settings", "get_app", "install", "SessionOptions"],
    "Stores": [
        "PostgresSessionStore",
        "MemorySessionStore",
        "SessionInfo",
        "SessionStore",
        "Pool",
    ],
    "CORS and errors as JSON": ["CorsMixin", "AppError", "AppErrorMixin"],
    "Exceptions": [
        "SessionError",
        "SettingsError",
        "SessionNotLoaded",
        "SessionDataError",
        "SessionGone",
        "ResponseAlreadySent",
        "StoreError",
        "StoreUnavailable",
        "LockTimeout",
        "SchemaMissing",
    ],
}
#: What is public in modules of its own: what to import, and from where.
MODULES: list[tuple[str, list[Any]]] = [
    ("tornado_compas_session.core.types", [types.RetiredId]),
    # For a store of one's own.
    (
        "tornado_compas_session.core.protocols",
        [protocols.UserSessions, protocols.Locked],
    ),
    (
        "tornado_compas_session.core.types",
        [
            types.SessionRecord,
            types.SessionChange,
            types.NewSecret,
            types.Identity,
            types.Saved,
            types.Incremented,
        ],
    ),
    (
        "tornado_compas_session.stores.migrations",
        [migrations.migrate, migrations.pending, migrations.script],
    ),
    ("tornado_compas_session.stores.cleaner", [cleaner.Cleaner]),
    ("tornado_compas_session.testing.embedded", [embedded.EmbeddedPostgres]),
    ("tornado_compas_session.testing", [testing.session_cookie, testing.Clock]),
]
#: Documented at Tornado; what they do here is in the class's own words.
_TORNADOS = {
    "detach",
    "finish",
    "flush",
    "log_exception",
    "on_connection_close",
    "on_finish",
    "send_error",
    "set_default_headers",
}
#: Between the session and its manager.
_INNER = {"Session": {"bind", "busy", "open", "start", "untouched", "user"}}


def page() -> str:
    """The text of the page."""
    named = {name for names in GROUPS.values() for name in names}
    if missing := set(package.__all__) - named:
        raise SystemExit(f"scripts/reference.py has no place for {sorted(missing)}")
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [describe(name, getattr(package, name)) for name in names]
    parts.append("## In modules of their own\n")
    for module, things in MODULES:
        for thing in things:
            text = describe(thing.__name__, thing)
            parts.append(text.replace("\n\n", f"\n\nFrom `{module}`.\n\n", 1))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def describe(name: str, thing: Any) -> str:
    """The entry of a class or a function."""
    if not inspect.isclass(thing):
        return f"### {name}\n\n{code(signature(name, thing))}\n{text_of(thing)}\n"
    bases = [base.__name__ for base in thing.__bases__]
    shown = [base for base in bases if base not in {"object", "Protocol", "tuple"}]
    head = f"class {name}" + (f"({', '.join(shown)})" if shown else "")
    parts = [f"### {name}\n", code(head), text_of(thing)]
    own_init = vars(thing).get("__init__")
    if (
        inspect.isfunction(own_init)
        and not is_dataclass(thing)
        and not issubclass(thing, Exception)
        and not getattr(thing, "_is_protocol", False)
        and name not in _INNER
    ):
        parts[1] = code(signature(name, own_init))
    parts += [entry for member in members(thing) for entry in [member] if entry]
    return "\n".join(parts) + "\n"


def members(cls: type[Any]) -> list[str]:
    """The entries of what a class defines itself, in the order of its source."""
    found = []
    if is_dataclass(cls):
        listed = [f"`{field.name}`" for field in fields(cls)]
        found.append(f"Attributes: {', '.join(listed)}.\n")
    elif hasattr(cls, "_fields"):
        listed = [f"`{field}`" for field in cls._fields]
        found.append(f"Attributes: {', '.join(listed)}.\n")
    for name, member in [pair for part in _parts(cls) for pair in vars(part).items()]:
        if name.startswith("_") or name in _TORNADOS | _INNER.get(cls.__name__, set()):
            continue
        full = f"{cls.__name__}.{name}"
        if isinstance(member, property):
            kind = "settable property" if member.fset else "property"
            found.append(f"#### {full}\n\n({kind}) {text_of(member)}\n")
        elif isinstance(member, classmethod | staticmethod):
            found.append(entry(full, member.__func__))
        elif inspect.isfunction(member):
            found.append(entry(full, member))
    return found


def _parts(cls: type[Any]) -> list[type[Any]]:
    """The class, and those of ours that it is made of and that have no entry."""
    named = {name for names in GROUPS.values() for name in names}
    return [cls] + [
        base
        for base in cls.__mro__[1:]
        if base.__module__.startswith(package.__name__)
        and base.__name__ not in named
        and not base.__name__.startswith("_")
    ]


def entry(full: str, function: Any) -> str:
    """The entry of a method."""
    return f"#### {full}\n\n{code(signature(full, function))}\n{text_of(function)}\n"


def signature(name: str, function: Any) -> str:
    """How it is called: annotations as they are written, without `self`."""
    function = inspect.unwrap(function)
    found = inspect.signature(function)
    parameters = [
        parameter
        for parameter in found.parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    returns = inspect.Signature.empty
    if function.__name__ != "__init__":
        returns = found.return_annotation
    new = inspect.Signature(parameters, return_annotation=returns)
    # Annotations are texts (`from __future__ import annotations`).
    text = re.sub(r"(?<=[:>] )'([^']*)'", r"\1", str(new))
    keyword = "async def " if inspect.iscoroutinefunction(function) else ""
    line = f"{keyword}{name}{text}"
    if len(line) <= 88:
        return line
    shown = [
        re.sub(r"(?<=: )'([^']*)'", r"\1", str(parameter)) for parameter in parameters
    ]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if keyword_only and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        shown.insert(parameters.index(keyword_only[0]), "*")
    tail = text.rpartition(") -> ")[2] if ") -> " in text else ""
    body = "".join(f"    {one},\n" for one in shown)
    return f"{keyword}{name}(\n{body})" + (f" -> {tail}" if tail else "")


def code(text: str) -> str:
    """The text as a block; not a program, so it is not called Python's."""
    return f"```text\n{text}\n```\n"


def text_of(thing: Any) -> str:
    """The docstring, with indented examples as blocks of code."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    if not lines:
        raise SystemExit(f"{thing!r} has no docstring")
    out: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and (not out or not out[-1].startswith("- ")):
            out.append("```text")
            inside = True
        elif inside and line and not indented:
            out.insert(len(out) - 1 if not out[-1] else len(out), "```")
            inside = False
        if line.startswith("- ") and out and not re.match("- |  |$", out[-1]):
            out.append("")
        out.append(line[4:] if inside else line)
    if inside:
        out.append("```")
    return "\n".join(out) + "\n"


def options_page(text: str) -> str:
    """The page of the options with what stands between its marks written anew."""
    marks = re.compile(r"(<!-- the options from (\w+) -->\n).*?(?=<!-- end -->)", re.S)
    firsts = {match[2] for match in marks.finditer(text)}
    parts: dict[str, str] = {}
    first = ""
    for name, entry in _entries():
        first = name if name in firsts else first
        parts[first] = parts.get(first, "\n") + entry
    if parts.keys() != firsts:
        raise SystemExit(f"docs/options.md has no place for {parts.keys() - firsts}")
    return marks.sub(lambda match: match[1] + parts[match[2]], text)


def _entries() -> Iterator[tuple[str, str]]:
    """Each option's entry, of its default and what stands above it in the source."""
    source = inspect.getsource(SessionOptions)
    said = dict(
        (name, " ".join(re.sub(r" *#:", "", comment).split()))
        for comment, name in re.findall(r"((?:^ +#: .*\n)+) +(\w+): ", source, re.M)
    )
    for name, option in OPTIONS.items():
        if name not in said:
            raise SystemExit(f"settings.py does not say what {name} means")
        meaning, in_words, words = said[name].partition(" Default: ")
        written = repr(option.default).replace("datetime.", "").replace("'", '"')
        default = words if in_words else f"`{written}`"
        yield name, f"### {name}\n\nDefault: {default}\n\n{meaning}\n\n"


def main() -> None:
    """Writes the pages, or says that they should be."""
    written = OPTIONS_PAGE.read_text(encoding="utf-8")
    for path, text in {PAGE: page(), OPTIONS_PAGE: options_page(written)}.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"docs/{path.name}: run python scripts/reference.py")


if __name__ == "__main__":
    main()
