"""A context manager around the outermost model call: reduced precision inside, float32 outputs, the loss outside.

That is how accelerate does it, and what was measured. `output = model(x)` becomes

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    output = output.float()

A call within an expression is taken out of it first. Where what a call returns is no tensor, or several within an
expression, the whole statement goes under the context and nothing is cast; a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from perftool.patch.source import Draft, Refused, Source, Statement, before, bound, is_start, led_by
from perftool.patch.work import Wish, Work
from perftool.records import Site


def lay_contexts(wishes: Sequence[Wish], work: Work) -> None:
    contexts = [wish["loss_context"] for wish in wishes]
    found: dict[cst.SimpleStatementLine, tuple[Draft, Site, list[str], list[cst.Call]]] = {}
    for site in work.by_hand("model_call", "call of a model with gradients"):
        draft = work.draft(site.file)
        for call in draft.source.calls(site):
            missing = [one for one in contexts if not _is_within(draft.source, call, one)]
            if missing:
                calls = found.setdefault(draft.source.statement(call), (draft, site, missing, []))[3]
                calls.extend([call] if call not in calls else [])
    for line, (draft, site, missing, calls) in found.items():
        draft.uses += missing
        outer = [call for call in calls if not any(up in calls for _, up in draft.source.parents(call))]
        _lay(draft, site, line, ", ".join(missing), outer, work.notes)


def _is_within(source: Source, call: cst.Call, context: str) -> bool:
    """Whether a call stands under this context. Raises Refused where it stands under one of its kind."""
    wanted = cst.parse_expression(context)
    for _, parent in source.parents(call):
        if isinstance(parent, cst.FunctionDef | cst.Lambda):
            return False
        for item in parent.items if isinstance(parent, cst.With) else ():
            if source.code(item.item) == context:
                return True
            if _last_name(item.item) == _last_name(wanted) is not None:
                raise Refused(f"{source.path}:{source.line(parent)} has {source.code(item.item)} already")
    return False


def _last_name(node: cst.BaseExpression) -> str | None:
    """`autocast` of `torch.autocast(...)`."""
    function = node.func if isinstance(node, cst.Call) else node
    function = function.attr if isinstance(function, cst.Attribute) else function
    return function.value if isinstance(function, cst.Name) else None


def _lay(
    draft: Draft, site: Site, line: cst.SimpleStatementLine, context: str, calls: Sequence[cst.Call],
    notes: list[str],
) -> None:  # fmt: skip
    names = _bound(line.body[0], calls[0])
    cast = names if site.outputs == "tensor" and len(names) == 1 else []
    cast = names if site.outputs == "tensors" and len(names) > 1 else cast
    if cast or site.outputs != "tensor" or len(names) > 1:
        draft.change_lines(line, lambda lines: _wrapped(draft.source, context, lines, cast))
        if not cast:
            place = f"{draft.source.path}:{draft.source.line(calls[0])}"
            notes.append(
                f"{place}: the whole statement runs under {context}, and its outputs are not cast to float32, since "
                "they are not tensors with a name each"
            )
    else:
        _take_out(draft, line, context, calls)


def _bound(statement: cst.BaseSmallStatement, call: cst.Call) -> list[str]:
    """The names that a statement binds to what a call returns and to nothing else; empty for any other statement."""
    if isinstance(statement, cst.Assign) and statement.value is call and len(statement.targets) == 1:
        target = statement.targets[0].target
        parts = [one.value for one in target.elements] if isinstance(target, cst.Tuple) else [target]
        if all(isinstance(part, cst.Name) for part in parts):
            return [part.value for part in parts if isinstance(part, cst.Name) and part.value != "_"]
    return []


def _wrapped(source: Source, context: str, lines: Sequence[Statement], cast: Sequence[str]) -> list[Statement]:
    """Lines under a context, and the names that are cast after it."""
    first, *rest = lines
    block = _under(source, context, [led_by(first, ()), *rest])
    after = source.statements(f"{', '.join(cast)} = {', '.join(f'{name}.float()' for name in cast)}") if cast else []
    return [led_by(block, first.leading_lines), *after]


def _take_out(draft: Draft, line: cst.SimpleStatementLine, context: str, calls: Sequence[cst.Call]) -> None:
    """`y = f(model(x))` as `output = model(x)` under the context, and `y = f(output.float())`."""
    receiver = _receiver(line.body[0], calls[0]) if len(calls) == 1 else None
    taken: dict[str, cst.Call] = {}

    def take(call: cst.Call, name: str) -> None:
        def replaced(updated: cst.Call) -> cst.BaseExpression:
            taken[name] = updated
            return cst.parse_expression(f"{name}.float()")

        draft.change_call(call, replaced)

    def led(lines: list[Statement]) -> list[Statement]:
        return before([_under(draft.source, context, [bound(*one) for one in taken.items()])], lines)

    for call, name in zip(calls, [receiver] if receiver else draft.source.fresh("output", len(calls)), strict=True):
        take(call, name)
    draft.change_lines(line, led)


def _receiver(statement: cst.BaseSmallStatement, call: cst.Call) -> str | None:
    """`y` of `y = model(x).view(-1)`, which needs no further name, where `y` stands nowhere else in it."""
    if not isinstance(statement, cst.Assign) or len(statement.targets) != 1:
        return None
    target = statement.targets[0].target
    if not isinstance(target, cst.Name) or not is_start(call, statement.value):
        return None
    rest = _Names()
    statement.value.visit(rest)
    return None if target.value in rest.found else target.value


class _Names(cst.CSTVisitor):
    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Name(self, node: cst.Name) -> None:
        self.found.add(node.value)


def _under(source: Source, context: str, lines: Sequence[Statement]) -> Statement:
    block = source.statements(f"with {context}:\n    pass")[0]
    return block.with_changes(body=cst.IndentedBlock(body=lines))
