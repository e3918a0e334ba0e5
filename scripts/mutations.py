"""Small faults put into the code and the SQL, one at a time: what tests should find."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

NO_LINES = range(0)


class Mutant(NamedTuple):
    """A file with one fault in it."""

    path: str
    line: int
    #: Those of the function that it is in.
    lines: range
    #: The fault in a few words, the same in every run and whatever is around it.
    fault: str
    #: Python as a tree, with the lines of the original; SQL as text.
    make: Callable[[], ast.Module | str]

    @property
    def name(self) -> str:
        """As docs/mutants.md lists it; without the line it outlives changes."""
        return f"{self.path} {self.fault}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.fault}"


# -- Python ----------------------------------------------------------------------------

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
#: Not what the code does: what it says, and what is only read by people or by mypy.
_SILENT = {"__repr__", "__str__"}


def of_python(path: str, text: str) -> Iterator[Mutant]:
    """The faults of a module: a wrong operator, a missing statement, another value."""
    tree = ast.parse(text)
    silent = _silent(tree)
    places = {id(node): place for node, place in _places(tree, _Place())}
    said: Counter[str] = Counter()
    for number, node in enumerate(ast.walk(tree)):
        if node in silent:
            continue
        for part, fault in enumerate(_faults(node)):
            place = places[id(node)]
            shown = f"{place.name} {fault}: {_short(node)}".strip()
            if isinstance(node, ast.Constant):
                shown += f" in {_short(place.statement)}"
            said[shown] += 1
            if said[shown] > 1:
                shown += f" ({said[shown]})"
            line = getattr(node, "lineno", 0)
            make = partial(_with_fault, text, number, fault, part)
            yield Mutant(path, line, place.lines, shown, make)


def _with_fault(text: str, number: int, fault: str, part: int) -> ast.Module:
    tree = ast.parse(text)
    node = next(node for i, node in enumerate(ast.walk(tree)) if i == number)
    _FAULTS[fault](node, part)
    return ast.fix_missing_locations(tree)


class _Place(NamedTuple):
    """Where a node is: the function or class, its lines, and the statement."""

    name: str = ""
    lines: range = NO_LINES
    statement: ast.AST = ast.Pass()


def _places(parent: ast.AST, around: _Place) -> Iterator[tuple[ast.AST, _Place]]:
    for node in ast.iter_child_nodes(parent):
        place = around
        if isinstance(node, ast.stmt):
            place = place._replace(statement=node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines = range(node.lineno, (node.end_lineno or 0) + 1)
            place = _Place(
                f"{place.name}.{node.name}".removeprefix("."),
                NO_LINES if isinstance(node, ast.ClassDef) else lines,
                node,
            )
        yield node, place
        yield from _places(node, place)


def _faults(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(ops=[*ops]):
            for op in ops:
                if type(op) in _OPERATORS:
                    yield "operator"
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign():
            # A union of types is for mypy, and text is not calculated with.
            if type(node.op) in _OPERATORS and not _is_text(node):
                yield "operator"
        case ast.UnaryOp(op=ast.Not()):
            yield "without not"
        case ast.If() | ast.While() | ast.IfExp():
            yield "never"
            yield "always"
        case ast.Constant(value=bool() | int() | float()):
            yield "value"
        case ast.Return(value=ast.expr() as value) if not _is_no(value):
            yield "returns None"
        case ast.Raise():
            yield "left out"
        case ast.Assign() | ast.Expr(value=ast.Call() | ast.Await()):
            yield "left out"
        case ast.Continue() | ast.Break():
            yield "left out"


def _operator(node: ast.AST, number: int) -> None:
    if isinstance(node, ast.Compare):
        node.ops[number] = _OPERATORS[type(node.ops[number])]()  # type: ignore[call-overload]
    else:
        node.op = _OPERATORS[type(node.op)]()  # type: ignore[attr-defined]


def _replace(node: ast.AST, new: ast.AST) -> None:
    place = {"lineno": getattr(node, "lineno", 0), "col_offset": 0}
    node.__class__ = new.__class__
    node.__dict__ = {**new.__dict__, **place}


def _value(node: ast.AST, number: int) -> None:
    assert isinstance(node, ast.Constant)
    value = node.value
    node.value = not value if isinstance(value, bool) else value + 1  # type: ignore[operator]


def _test(value: bool) -> ast.Constant:
    return ast.Constant(value, lineno=0, col_offset=0)


_FAULTS: dict[str, Callable[[Any, int], object]] = {
    "operator": _operator,
    "without not": lambda node, _: _replace(node, node.operand),
    "never": lambda node, _: setattr(node, "test", _test(False)),
    "always": lambda node, _: setattr(node, "test", _test(True)),
    "value": _value,
    "returns None": lambda node, _: setattr(node, "value", None),
    "left out": lambda node, _: _replace(node, ast.Pass(lineno=0, col_offset=0)),
}


def _silent(tree: ast.AST) -> set[ast.AST]:
    """The nodes that are in what no test of behaviour can see."""
    silent: list[ast.AST] = []
    for parent in ast.walk(tree):
        match parent:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                silent += [parent] if parent.name in _SILENT else []
                silent += _annotations(parent)
                silent += [parent.returns] if parent.returns else []
            case ast.AnnAssign():
                silent += [parent.annotation]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                silent += [parent]
            case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]):
                silent += [parent]
            case ast.Raise() | ast.JoinedStr():
                silent += ast.iter_child_nodes(parent)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger"))):
                silent += [parent]
    return {inner for one in silent for inner in ast.walk(one)}


def _annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    given = function.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    found += [one for one in (given.vararg, given.kwarg) if one]
    return [one.annotation for one in found if one.annotation]


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.Constant) and isinstance(one.value, str | bytes)
        for one in ast.iter_child_nodes(node)
    )


def _is_no(node: ast.AST) -> bool:
    """None or False, which answer the same."""
    return isinstance(node, ast.Constant) and node.value in (None, False)


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) < 70 else f"{text[:67]}..."


# -- SQL -------------------------------------------------------------------------------

_WORD = re.compile(r"--[^\n]*|'[^']*'|[A-Za-z_]\w*|[()]|\s+|.", re.S)
#: What ends a condition on its own level.
_END = {
    *("AND", "ORDER", "GROUP", "LIMIT", "RETURNING", "FOR", "UNION", "THEN", "ELSE"),
    *("WHEN", "END", "ON", "JOIN", "LEFT", "WHERE", "HAVING", "SET", "FROM", "SELECT"),
    *("UPDATE", "DELETE", "INSERT", ";"),
}


def of_sql(path: str, text: str) -> Iterator[Mutant]:
    """Each condition of the statements taken out in turn."""
    words = [(match[0], match.start()) for match in _WORD.finditer(text)]
    heading = ""
    said: Counter[str] = Counter()
    for index, (word, start) in enumerate(words):
        if word.startswith("-- ") and word.endswith(" --"):
            heading = word.strip("- ")
        if word in {"WHERE", "AND", "HAVING"} and not _is_range(words, index):
            begin, end = start + len(word), _end_of(words, index + 1, len(text))
            condition = text[begin:end].rstrip()
            end = begin + len(condition)
            # Still there, so that its parameters keep their types.
            faulty = f"{text[:begin]} (TRUE OR ({condition})){text[end:]}"
            shown = " ".join(re.sub(r"--[^\n]*", "", condition).split())
            if shown:
                line = text.count("\n", 0, start) + 1
                fault = f"{heading}: without {word} {shown}"
                said[fault] += 1
                if said[fault] > 1:
                    fault += f" ({said[fault]})"
                make = partial(str, faulty)
                yield Mutant(path, line, NO_LINES, fault, make)


def _is_range(words: list[tuple[str, int]], index: int) -> bool:
    """Whether this is the AND of a BETWEEN."""
    before = [word for word, _ in words[:index] if word.strip()]
    return words[index][0] == "AND" and "BETWEEN" in before[-4:]


def _end_of(words: list[tuple[str, int]], index: int, last: int) -> int:
    depth = 0
    for word, start in words[index:]:
        depth += {"(": 1, ")": -1}.get(word, 0)
        # A comment that is a heading begins the next statement.
        heading = word.startswith("-- ") and word.endswith(" --")
        if depth < 0 or (depth == 0 and (word in _END or heading)):
            return start
    return last
