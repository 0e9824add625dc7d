"""Where the values of a Python function's variables come from (GraphCodeBERT, arXiv 2009.08366)."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Sequence

from encoders.data.code import parse

# Variable -> nodes that its present value may come from.
_Values = dict[str, frozenset[int]]
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclasses.dataclass(frozen=True)
class Variable:
    """One occurrence of a variable: a node of the graph.

    Attributes:
      name: of the variable.
      start, stop: its characters in the code.
      sources: numbers of the variables that its value comes from, sorted.
    """

    name: str
    start: int
    stop: int
    sources: tuple[int, ...]


def data_flow(code: str) -> list[Variable]:
    """The data-flow graph of a piece of Python, variables in the order of the text.

    Variables are names that the code itself gives a value to: arguments, and targets of
    assignments, loops, `with`, `:=` and comprehensions. A read comes from the writes that may have
    come before it, by any branch and from earlier rounds of a loop. A write comes from the
    variables in the expression that it is given; those in a tuple by their place. `a.b = c` and
    `a[i] = c` are writes of `a` that come from `a`, `i` and `c`. Names that imports, definitions,
    `except` and patterns bind are no variables, nor are names from outside. Occurrences that
    nothing comes from and that come from nothing are left out.

    Args:
      code: such as a function's source; lines ended by '\\n'.

    Raises:
      SyntaxError, ValueError, RecursionError: it cannot be parsed.
    """
    graph = _Graph(code)
    graph.statements(parse(code).body, {})
    return graph.variables()


class _Graph:
    """Walks over statements in the order they run, with what every variable holds by then."""

    def __init__(self, code: str):
        self._lines = code.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        # Loops are walked twice, so an occurrence is known by its place.
        self._number: dict[tuple[int, str], int] = {}
        self._sources: list[set[int]] = []

    def variables(self) -> list[Variable]:
        """The nodes that have an edge, sorted by place and numbered anew."""
        places = list(self._number)
        linked = set().union(*self._sources) | {i for i, s in enumerate(self._sources) if s}
        order = sorted(linked, key=lambda number: places[number])
        renumbered = {old: new for new, old in enumerate(order)}
        found = []
        for old in order:
            start, name = places[old]
            sources = tuple(sorted(renumbered[source] for source in self._sources[old]))
            found.append(Variable(name, start, start + len(name), sources))
        return found

    def _node(self, name: str, at: ast.AST, sources: Iterable[int]) -> int:
        # Columns of the tree count bytes.
        line = self._lines[at.lineno - 1]
        column = at.col_offset
        if not line.isascii():
            column = len(line.encode()[:column].decode())
        place = (self._starts[at.lineno - 1] + column, name)
        number = self._number.setdefault(place, len(self._number))
        if number == len(self._sources):
            self._sources.append(set())
        # x += 1 reads and writes at one place, and nothing comes from itself.
        self._sources[number].update(set(sources) - {number})
        return number

    # --- expressions ----------------------------------------------------------------------------

    def read(self, tree: ast.AST | None, values: _Values) -> frozenset[int]:
        """Nodes of the variables that an expression reads."""
        if tree is None:
            return frozenset()
        if isinstance(tree, ast.Name):
            if tree.id not in values:
                return frozenset()
            return frozenset({self._node(tree.id, tree, values[tree.id])})
        if isinstance(tree, ast.NamedExpr):
            self.write(tree.target, self.read(tree.value, values), values)
            return values[tree.target.id]
        if isinstance(tree, ast.Lambda):
            return self.function(tree, [tree.body], values)
        if isinstance(tree, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            inner = dict(values)
            for part in tree.generators:
                self.write(part.target, self.read(part.iter, inner), inner)
                for condition in part.ifs:
                    self.read(condition, inner)
            parts = [tree.key, tree.value] if isinstance(tree, ast.DictComp) else [tree.elt]
            return frozenset().union(*(self.read(part, inner) for part in parts))
        parts = ast.iter_child_nodes(tree)
        return frozenset().union(*(self.read(part, values) for part in parts))

    def write(self, target: ast.AST, sources: frozenset[int], values: _Values) -> None:
        """Gives a target a value that comes from `sources`; changes `values`."""
        if isinstance(target, ast.Name):
            values[target.id] = frozenset({self._node(target.id, target, sources)})
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self.write(part, sources, values)
        elif isinstance(target, ast.Starred):
            self.write(target.value, sources, values)
        elif isinstance(target, ast.Attribute | ast.Subscript):
            if isinstance(target, ast.Subscript):
                sources = sources | self.read(target.slice, values)
            root = target.value
            if isinstance(root, ast.Name) and root.id not in values:
                return
            if isinstance(root, ast.Name):
                sources = sources | values[root.id]
            if isinstance(root, ast.Name | ast.Attribute | ast.Subscript):
                self.write(root, sources, values)
            else:
                self.read(root, values)

    def assign(self, target: ast.AST, value: ast.AST, values: _Values) -> None:
        """target = value, tuples of one length part by part."""
        for one, sources in self._pairs(target, value, values):
            self.write(one, sources, values)

    def _pairs(
        self, target: ast.AST, value: ast.AST, values: _Values
    ) -> list[tuple[ast.AST, frozenset[int]]]:
        """Targets and what they come from; all is read before anything is written."""
        tuples = (ast.Tuple, ast.List)
        if isinstance(target, tuples) and isinstance(value, tuples):
            parts = target.elts + value.elts
            starred = any(isinstance(part, ast.Starred) for part in parts)
            if len(target.elts) == len(value.elts) and not starred:
                both = zip(target.elts, value.elts, strict=True)
                return [pair for t, v in both for pair in self._pairs(t, v, values)]
        return [(target, self.read(value, values))]

    # --- statements -----------------------------------------------------------------------------

    def statements(self, body: Sequence[ast.AST], values: _Values) -> None:
        """Walks statements; changes `values`."""
        for statement in body:
            self.statement(statement, values)

    def statement(self, tree: ast.AST, values: _Values) -> None:
        """Walks a statement; changes `values`."""
        match tree:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for decorator in tree.decorator_list:
                    self.read(decorator, values)
                self.function(tree, tree.body, values)
            case ast.ClassDef():
                for base in [*tree.decorator_list, *tree.bases, *tree.keywords]:
                    self.read(base, values)
                self.statements(tree.body, dict(values))
            case ast.Assign():
                for target in tree.targets:
                    self.assign(target, tree.value, values)
            case ast.AnnAssign():
                if tree.value is not None:
                    self.assign(tree.target, tree.value, values)
            case ast.AugAssign():
                sources = self.read(tree.value, values)
                if isinstance(tree.target, ast.Name):
                    sources = sources | values.get(tree.target.id, frozenset())
                self.write(tree.target, sources, values)
            case ast.Delete():
                for target in tree.targets:
                    self.read(target, values)
                    if isinstance(target, ast.Name):
                        values.pop(target.id, None)
            case ast.If():
                self.read(tree.test, values)
                self._branches([tree.body, tree.orelse], values)
            case ast.For() | ast.AsyncFor() | ast.While():
                self._loop(tree, values)
            case ast.With() | ast.AsyncWith():
                for item in tree.items:
                    sources = self.read(item.context_expr, values)
                    if item.optional_vars is not None:
                        self.write(item.optional_vars, sources, values)
                self.statements(tree.body, values)
            case ast.Try() | ast.TryStar():
                self._try(tree, values)
            case ast.Match():
                self.read(tree.subject, values)
                for case in tree.cases:
                    self.read(case.guard, values)
                self._branches([*(case.body for case in tree.cases), []], values)
            case _:
                for part in ast.iter_child_nodes(tree):
                    self.read(part, values)

    def function(self, tree: _Function, body: list[ast.AST], values: _Values) -> frozenset[int]:
        """Walks a function, which sees the variables around it and gives none back.

        Returns:
          What it reads, if it is a lambda.
        """
        given, inner = tree.args, dict(values)
        ordered = [*given.posonlyargs, *given.args]
        defaults = [None] * (len(ordered) - len(given.defaults)) + given.defaults
        pairs = [*zip(ordered, defaults, strict=True)]
        pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
        pairs += [(argument, None) for argument in (given.vararg, given.kwarg) if argument]
        for argument, default in pairs:
            node = self._node(argument.arg, argument, self.read(default, values))
            inner[argument.arg] = frozenset({node})
        if isinstance(tree, ast.Lambda):
            return self.read(tree.body, inner)
        self.statements(body, inner)
        return frozenset()

    def _branches(self, bodies: Sequence[Sequence[ast.AST]], values: _Values) -> None:
        """One of several bodies runs; an empty one stands for none of them."""
        ends = []
        for body in bodies:
            ends.append(dict(values))
            self.statements(body, ends[-1])
        _become(values, _union(ends))

    def _loop(self, tree: ast.For | ast.AsyncFor | ast.While, values: _Values) -> None:
        # Twice, so that the first statements find what the last ones wrote the round before.
        for _ in range(2):
            around = dict(values)
            if isinstance(tree, ast.While):
                self.read(tree.test, around)
            else:
                self.write(tree.target, self.read(tree.iter, values), around)
            self.statements(tree.body, around)
            _become(values, _union([values, around]))
        self.statements(tree.orelse, values)

    def _try(self, tree: ast.AST, values: _Values) -> None:
        before = dict(values)
        self.statements(tree.body, values)
        ends = [dict(values)]
        self.statements(tree.orelse, ends[0])
        for handler in tree.handlers:
            # It may have happened anywhere in the body.
            ends.append(_union([before, values]))
            self.read(handler.type, ends[-1])
            self.statements(handler.body, ends[-1])
        _become(values, _union(ends))
        self.statements(tree.finalbody, values)


def _union(ends: Sequence[_Values]) -> _Values:
    names = set().union(*ends)
    return {
        name: frozenset().union(*(end.get(name, frozenset()) for end in ends)) for name in names
    }


def _become(values: _Values, others: _Values) -> None:
    values.clear()
    values.update(others)
