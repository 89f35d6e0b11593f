"""Lines after the statement that builds a model, with its own name for the model."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from perftool.patch.source import Draft, Refused, Statement, bare, bound, is_start, led_by, named
from perftool.patch.work import Wish, Work


def lay_models(wishes: Sequence[Wish], work: Work) -> None:
    """`net = Net()` gets `net.compile()` after it; `return Net()` gets a name first."""
    lines = "\n".join(wish["model"] for wish in wishes)
    seen: set[cst.SimpleStatementLine] = set()
    for site in work.by_hand("model", "construction of a model"):
        draft = work.draft(site.file)
        call = draft.source.call(site)
        line = draft.source.statement(call)
        if line in seen:
            continue
        seen.add(line)
        statement = line.body[0]
        if isinstance(statement, cst.Return) and statement.value is not None and is_start(call, statement.value):
            (name,) = draft.source.fresh("model")
            _after_return(draft, line, name, _written(draft, lines, name))
            continue
        target = None
        if isinstance(statement, cst.Assign) and is_start(call, statement.value):
            target = statement.targets[0].target
        if not isinstance(target, cst.Name | cst.Attribute):
            raise Refused(f"the model that {draft.source.path}:{site.line} builds gets no name there")
        new = _written(draft, lines, draft.source.code(target))
        present = {bare(one) for one in draft.source.later(line)}
        if any(bare(one) not in present for one in new):
            draft.change_lines(line, lambda old, new=new: [*old, *new])  # type: ignore[misc]


def _written(draft: Draft, lines: str, model: str) -> list[Statement]:
    draft.uses.append(lines)
    return [named(_in_place(one), {"model": model}) for one in draft.source.statements(lines)]


def _in_place(line: Statement) -> Statement:
    """`model = torch.compile(model)` as `model.compile()`, which keeps the names in checkpoints: a model that
    torch.compile returns puts `_orig_mod.` before each."""
    if not isinstance(line, cst.SimpleStatementLine) or not isinstance(line.body[0], cst.Assign):
        return line
    call = line.body[0].value
    compiles = isinstance(call, cst.Call) and cst.Module([]).code_for_node(call.func) == "torch.compile"
    if not compiles or not isinstance(call, cst.Call):
        return line
    method = cst.Call(cst.Attribute(cst.Name("model"), cst.Name("compile")), call.args[1:])
    return line.with_changes(body=[cst.Expr(method)])


def _after_return(draft: Draft, line: cst.SimpleStatementLine, name: str, new: Sequence[Statement]) -> None:
    def change(lines: list[Statement]) -> list[Statement]:
        (old,) = lines
        assert isinstance(old, cst.SimpleStatementLine)
        statement = old.body[0]
        assert isinstance(statement, cst.Return)
        assert statement.value is not None
        returned = old.with_changes(body=[statement.with_changes(value=cst.Name(name))])
        return [led_by(bound(name, statement.value), old.leading_lines), *new, led_by(returned, ())]

    draft.change_lines(line, change)
