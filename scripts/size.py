"""
How large the house is: lines of code, long classes, hands in other objects' pockets.

    python -m scripts.size

Blank lines, comments and docstrings are no code.
"""

from __future__ import annotations

import ast
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "tornado_compas_session"
#: What no request needs.
ASIDE = {"tools", "testing", "__main__"}
LONG_CLASS = 150
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> int:
    """The lines of a file on which there is code."""
    lines: set[int] = set()
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type not in _NO_CODE:
                lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (ast.get_docstring(node, clean=False) is not None):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def long_classes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The classes that are too long to be one idea, with the length of each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > LONG_CLASS:
                yield length, node.name


def foreign_assignments(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where an underscored attribute is set that is not `self`'s: line and target."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and not isinstance(node.ctx, ast.Load)
            and node.attr.startswith("_")
            and not node.attr.endswith("__")
            and ast.unparse(node.value) not in {"self", "cls"}
        ):
            yield node.lineno, ast.unparse(node)


def main() -> None:
    """Prints it all."""
    lines: Counter[str] = Counter()
    classes: list[tuple[int, str]] = []
    foreign: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        wing = place.parts[0].removesuffix(".py")
        lines[wing if len(place.parts) > 1 or wing in ASIDE else "ground"] += (
            code_lines(path)
        )
        tree = ast.parse(path.read_bytes())
        classes += [(n, f"{place}: {name}") for n, name in long_classes(tree)]
        foreign += [f"{place}:{n} {name}" for n, name in foreign_assignments(tree)]
    for what, aside in (("serving", False), ("all else", True)):
        wings = {wing: n for wing, n in lines.items() if (wing in ASIDE) == aside}
        shares = ", ".join(f"{wing} {n}" for wing, n in sorted(wings.items()))
        print(f"{what}: {sum(wings.values())} lines of code ({shares})")
    print(f"classes over {LONG_CLASS} lines: {len(classes)}")
    for length, name in sorted(classes, reverse=True):
        print(f"  {length} {name}")
    print(f"underscored attributes set from outside: {len(foreign)}")
    for one in foreign:
        print(f"  {one}")


if __name__ == "__main__":
    main()
