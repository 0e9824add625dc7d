"""Functions and their documentation, from Python source: pairs of text and code."""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Iterator

MIN_WORDS = 3
MIN_LINES = 3


@dataclasses.dataclass(frozen=True)
class Function:
    """A documented function.

    Attributes:
      name: with the classes and functions around it, as 'Class.method'.
      line: of its `def`, counted from 1.
      text: first paragraph of its docstring, as one line.
      code: its source from `def` on, without the docstring, moved to the left margin.
    """

    name: str
    line: int
    text: str
    code: str


def documented_functions(source: str) -> list[Function]:
    """The documented functions of a Python file, in the order of their lines.

    Left out is what CodeSearchNet leaves out (arXiv 1909.09436, section 2): documentation of fewer
    than three words, functions of fewer than three lines, those with 'test' in their name, and
    methods that Python calls itself, such as __init__. Left out too are docstrings that share a
    line with code. Decorators are no part of the code.

    Args:
      source: text of the file, lines ended by '\\n'.

    Raises:
      SyntaxError, ValueError, RecursionError: it cannot be parsed.
    """
    lines = source.split("\n")
    found = []
    for name, node in _definitions(parse(source), ()):
        if "test" in node.name.lower() or re.fullmatch("__.*__", node.name):
            continue
        text = _paragraph(node)
        if len(text.split()) < MIN_WORDS:
            continue
        code = _code(node, lines)
        if len(code) >= MIN_LINES:
            found.append(Function(name, node.lineno, text, "\n".join(code)))
    return found


def parse(source: str) -> ast.Module:
    """The syntax tree, without the warnings that old sources give rise to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _definitions(
    tree: ast.AST, around: tuple[str, ...]
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        inside = around
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inside = (*around, node.name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ".".join(inside), node
        if not isinstance(node, ast.expr):
            yield from _definitions(node, inside)


def _paragraph(node: ast.AST) -> str:
    """First paragraph of the docstring, as one line; '' without one."""
    docstring = ast.get_docstring(node) or ""
    first = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    return " ".join(first.split())


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> list[str]:
    """Lines of the function without its docstring and without blank ones; [] where they share."""
    documentation = node.body[0]
    first, last = documentation.lineno - 1, documentation.end_lineno
    before = lines[first].encode()[: documentation.col_offset]
    after = lines[last - 1].encode()[documentation.end_col_offset :]
    if len(node.body) == 1 or before.strip() or after.strip()[:1] not in (b"", b"#"):
        return []
    kept = lines[node.lineno - 1 : first] + lines[last : node.end_lineno]
    # Moves what is indented; a line of a string that begins further left stays.
    margin = node.col_offset
    moved = [line[margin:] if line[:margin].isspace() else line for line in kept]
    return [line.rstrip() for line in moved if line.strip()]
