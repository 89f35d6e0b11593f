"""One file of a user's as a tree that keeps its formatting: what stands where, and a draft of its changes."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider

from perftool.patch.texts import MARK
from perftool.records import Site

Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement
ChangeOfCall = Callable[[cst.Call], cst.BaseExpression]
ChangeOfLines = Callable[[list[Statement]], list[Statement]]

_LATER = (cst.Lambda, cst.BaseComp)  # what is within runs another time, or several times


class Refused(Exception):
    """A change that cannot be written; the text says why, without a capital and a full stop."""


class Source:
    """A parsed file. Raises Refused for one that cannot be read."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.mark = MARK if text.startswith(MARK) else ""
        try:
            self.module = cst.parse_module(text[len(self.mark) :])
        except cst.ParserSyntaxError as error:
            raise Refused(f"libcst cannot read {path}, line {error.raw_line}") from None
        if self.mark + self.module.code != text:
            raise Refused(f"libcst does not give {path} back as it is")
        self._lines = re.split(r"\r\n|\r|\n", self.module.code)
        wrapper = MetadataWrapper(self.module, unsafe_skip_copy=True)
        self._positions: Mapping[cst.CSTNode, CodeRange] = wrapper.resolve(PositionProvider)
        self._parents: Mapping[cst.CSTNode, cst.CSTNode] = wrapper.resolve(ParentNodeProvider)
        self._names = {node.value for node in self._parents if isinstance(node, cst.Name)}
        self._aliases = _aliases(self._parents)

    # ------------------------------------------------------------------------------------------------------- finding

    def line(self, node: cst.CSTNode) -> int:
        return self._positions[node].start.line

    def parents(self, node: cst.CSTNode) -> Iterable[tuple[cst.CSTNode, cst.CSTNode]]:
        """Each node from this one up, with its parent."""
        while not isinstance(node, cst.Module):
            parent = self._parents[node]
            yield node, parent
            node = parent

    def calls(self, site: Site) -> list[cst.Call]:
        """The call that ends where the site says, else the calls of its callee that its line belongs to, none within
        another. Raises Refused for none."""
        if site.end_line is not None and site.end_column is not None:
            return [self._call_to(site.end_line, site.end_column)]
        fitting = [
            node
            for node, place in self._positions.items()
            if isinstance(node, cst.Call) and place.start.line <= site.line <= place.end.line
            if self._is_named(node.func, site.callee)
        ]
        fitting = [call for call in fitting if self.line(call) == site.line] or fitting
        if not fitting:
            raise Refused(f"no call of {site.callee or 'a model'} is seen at {self.path}:{site.line}")
        inner = {call for call in fitting for _, parent in self.parents(call) if parent in fitting}
        return sorted((call for call in fitting if call not in inner), key=self._start)

    def _call_to(self, line: int, column_bytes: int) -> cst.Call:
        for node, place in self._positions.items():
            if isinstance(node, cst.Call) and place.end.line == line:
                before_end = self._lines[line - 1][: place.end.column]
                if len(before_end.encode()) == column_bytes:
                    return node
        raise Refused(f"no call ends at {self.path}:{line}, column {column_bytes + 1}")

    def call(self, site: Site) -> cst.Call:
        """The one call of the site's callee. Raises Refused for none or several."""
        found = self.calls(site)
        if len(found) > 1:
            raise Refused(f"{self.path}:{site.line} calls {site.callee or 'a model'} several times")
        return found[0]

    def statement(self, call: cst.Call) -> cst.SimpleStatementLine:
        """The statement that makes a call exactly once, with nothing else on its line. Raises Refused for another."""
        for node, parent in self.parents(call):
            if isinstance(parent, cst.SimpleStatementLine):
                if len(parent.body) > 1:
                    raise Refused(f"several statements share {self.path}:{self.line(call)}")
                return parent
            sometimes = (isinstance(parent, cst.IfExp) and node is not parent.test) or (
                isinstance(parent, cst.BooleanOperation) and node is parent.right
            )
            if sometimes or isinstance(parent, _LATER):
                raise Refused(f"the call at {self.path}:{self.line(call)} runs only on a condition, or several times")
            if isinstance(parent, cst.BaseCompoundStatement | cst.SimpleStatementSuite):
                break
        raise Refused(f"the call at {self.path}:{self.line(call)} shares its line with a compound statement")

    def later(self, statement: Statement) -> list[Statement]:
        """The statements of the same block after this one."""
        block = self._parents[statement]
        assert isinstance(block, cst.IndentedBlock | cst.Module)
        lines = [one for one in block.body if isinstance(one, Statement)]
        return lines[lines.index(statement) + 1 :]

    def code(self, node: cst.CSTNode) -> str:
        return self.module.code_for_node(node)

    def values(self, node: cst.BaseExpression) -> list[cst.BaseExpression]:
        """What the file assigns to a name, wherever it does; the expression itself where it is not assigned to."""
        found = [
            one.value
            for one in self._parents
            if isinstance(one, cst.Assign) and any(target.target.deep_equals(node) for target in one.targets)
        ]
        return found or [node]

    def _start(self, node: cst.CSTNode) -> tuple[int, int]:
        start = self._positions[node].start
        return start.line, start.column

    def _is_named(self, function: cst.BaseExpression, name: str) -> bool:
        """A subclass that hands its arguments on, by `super().__init__(...)`, has every name."""
        if isinstance(function, cst.Attribute):
            hands_on = function.attr.value == "__init__" and self.code(function.value) == "super()"
            return hands_on or function.attr.value == name
        return isinstance(function, cst.Name) and name in (function.value, self._aliases.get(function.value))

    # ------------------------------------------------------------------------------------------------------- writing

    def fresh(self, name: str, count: int = 1) -> list[str]:
        """Names that the file has not; the same at each call, for what is used at once."""
        candidates = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        return list(itertools.islice((one for one in candidates if one not in self._names), count))

    def statements(self, lines: str) -> list[Statement]:
        """Lines of Python in the file's own indentation and line ends."""
        indent = self.module.default_indent
        lines = re.sub(r"^(?: {4})+", lambda found: indent * (len(found[0]) // 4), lines, flags=re.MULTILINE)
        return statements(lines.replace("\n", self.module.default_newline), self.module.config_for_parsing)


class Draft:
    """The changes of one file. What is added says so by `uses`, so that the imports that it needs are added, too."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.uses: list[str] = []
        self.first: list[str] = []  # statements before torch is imported
        self.setup: list[str] = []  # statements after the imports
        self.definitions: list[str] = []  # functions and classes after those
        self._calls: dict[cst.CSTNode, list[ChangeOfCall]] = defaultdict(list)
        self._lines: dict[cst.CSTNode, list[ChangeOfLines]] = defaultdict(list)

    @property
    def is_empty(self) -> bool:
        return not (self._calls or self._lines or self.first or self.setup or self.definitions)

    def change_call(self, call: cst.Call, change: ChangeOfCall) -> None:
        self._calls[call].append(change)

    def change_lines(self, statement: Statement, change: ChangeOfLines) -> None:
        """Change the lines that stand for a statement, once what is in it has been changed."""
        self._lines[statement].append(change)

    def applied(self) -> cst.Module:
        """The file with its calls and statements changed, and nothing yet at its head."""
        return self.source.module.visit(_Applied(self._calls, self._lines))


class _Applied(cst.CSTTransformer):
    def __init__(
        self, calls: Mapping[cst.CSTNode, Sequence[ChangeOfCall]], lines: Mapping[cst.CSTNode, Sequence[ChangeOfLines]]
    ) -> None:
        super().__init__()
        self.calls, self.lines = calls, lines

    def on_leave(  # type: ignore[override]
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode | cst.FlattenSentinel[Statement]:
        if original_node in self.calls:
            for change in self.calls[original_node]:
                assert isinstance(updated_node, cst.Call)
                updated_node = change(updated_node)
        elif original_node in self.lines:
            assert isinstance(updated_node, Statement)
            lines: list[Statement] = [updated_node]
            for alter in self.lines[original_node]:
                lines = alter(lines)
            return cst.FlattenSentinel(lines)
        return updated_node


def statements(lines: str, config: cst.PartialParserConfig = cst.PartialParserConfig()) -> list[Statement]:  # noqa: B008
    return list(cst.parse_module(lines, config).body)


def bare(statement: Statement) -> str:
    """The code of a statement without what stands before it, or after it on its line."""
    plain = led_by(statement, ())
    if isinstance(plain, cst.SimpleStatementLine):
        plain = plain.with_changes(trailing_whitespace=cst.TrailingWhitespace())
    return cst.Module([]).code_for_node(plain).strip()


def before(new: Sequence[Statement], lines: Sequence[Statement]) -> list[Statement]:
    """New lines before others, below the comments of those."""
    first, *rest = lines
    head, *more = new
    return [led_by(head, first.leading_lines), *more, led_by(first, ()), *rest]


def is_start(call: cst.Call, node: cst.BaseExpression) -> bool:
    """Whether an expression is the call, or a chain of methods that starts with it: `model(x).view(-1)`."""
    while node is not call and isinstance(node, cst.Call | cst.Attribute | cst.Subscript):
        node = node.func if isinstance(node, cst.Call) else node.value
    return node is call


def bound(name: str, value: cst.BaseExpression) -> cst.SimpleStatementLine:
    """`name = value`."""
    return cst.SimpleStatementLine([cst.Assign([cst.AssignTarget(cst.Name(name))], value)])


def led_by(statement: Statement, lines: Sequence[cst.EmptyLine]) -> Statement:
    """The statement with these empty lines and comments before it."""
    changed: Statement = statement.with_changes(leading_lines=lines)
    return changed


def named(node: Statement, names: Mapping[str, str]) -> Statement:
    """Lines of a scenario with other expressions for the names in them."""
    changed = node.visit(_Named(names))
    assert isinstance(changed, Statement)
    return changed


class _Named(cst.CSTTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = names

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        text = self.names.get(updated_node.value)
        return cst.parse_expression(text) if text is not None else updated_node

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:
        return updated_node.with_changes(keyword=original_node.keyword)

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.Attribute:
        return updated_node.with_changes(attr=original_node.attr)


def _aliases(nodes: Iterable[cst.CSTNode]) -> dict[str, str]:
    """Name in the file to the name that it was imported by: `from torch.utils.data import DataLoader as Loader`."""
    return {
        node.asname.name.value: node.name.value
        for node in nodes
        if isinstance(node, cst.ImportAlias)
        and isinstance(node.name, cst.Name)
        and node.asname is not None
        and isinstance(node.asname.name, cst.Name)
    }
