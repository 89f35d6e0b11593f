"""A dataset that is defined anew for a DataLoader, and the arguments by which the loader draws from it."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from perftool.patch.arguments import LOADER, builders, check_plain, fitted, keywords, name_of, put, with_names
from perftool.patch.source import Draft, Refused, bare, before, bound, named, statements
from perftool.patch.work import Wish, Work

_OWN_ORDER = ("sampler", "batch_sampler", "generator", "collate_fn")
_REPLACED = ("shuffle", "drop_last")


def lay_datasets(wishes: Sequence[Wish], work: Work) -> None:
    """The definitions go to the head of the file, the dataset's expression and the sampling into the call."""
    if len(wishes) > 1:
        raise Refused("another setting puts its own dataset there")
    lines = wishes[0]
    for call, draft in builders("loader", work).items():
        source = draft.source
        *definitions, last = statements(lines["dataset"])
        assert isinstance(last, cst.SimpleStatementLine)
        assert isinstance(last.body[0], cst.Assign)
        made = last.body[0].value
        args = {name_of(index, arg, LOADER): arg for index, arg in enumerate(call.args)}
        if _is_made(args, made):
            continue
        check_plain(source, call)
        where = f"{source.path}:{source.line(call)}"
        own = [name for name in _OWN_ORDER if name in args]
        if own:
            raise Refused(f"the DataLoader at {where} has a {own[0]} of its own")
        for name in _REPLACED:
            if name in args and source.code(args[name].value) not in ("True", "False"):
                raise Refused(f"{name} of the DataLoader at {where} is not written out")
        if "dataset" not in args:
            raise Refused(f"the DataLoader at {where} names no dataset")
        dataset = _named_dataset(draft, call, args["dataset"].value)
        size = source.code(args["batch_size"].value) if "batch_size" in args else "1"
        sampling = named(statements(f"f({lines['sampling']})")[0], {"dataset": dataset, "batch_size": size})
        _change(draft, call, made, dataset, bare(sampling)[2:-1])
        draft.uses.append(lines["sampling"])
        texts = (bare(one) for one in definitions)
        draft.definitions += [text for text in texts if text not in draft.definitions]


def _is_made(args: dict[str | None, cst.Arg], made: cst.BaseExpression) -> bool:
    present = args["dataset"].value if "dataset" in args else None
    return isinstance(present, cst.Call) and isinstance(made, cst.Call) and present.func.deep_equals(made.func)


def _named_dataset(draft: Draft, call: cst.Call, dataset: cst.BaseExpression) -> str:
    """What to call the dataset by: its own name, or one that it gets before the statement."""
    plain = dataset
    while isinstance(plain, cst.Attribute):
        plain = plain.value
    if isinstance(plain, cst.Name):
        return draft.source.code(dataset)
    (name,) = draft.source.fresh("dataset")
    draft.change_lines(draft.source.statement(call), lambda lines: before([bound(name, dataset)], lines))
    return name


def _change(draft: Draft, call: cst.Call, made: cst.BaseExpression, dataset: str, sampling: str) -> None:
    renamed = named(cst.SimpleStatementLine([cst.Expr(made)]), {"dataset": dataset})
    rows = keywords(f"dataset={bare(renamed)}")
    wanted = {**rows, **dict.fromkeys(_REPLACED), **keywords(sampling)}
    draft.change_call(call, lambda updated: fitted(draft.source, put(with_names(updated, LOADER), wanted, LOADER)))
