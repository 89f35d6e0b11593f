"""Keyword arguments of the calls that build loaders and optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import libcst as cst

from perftool.patch.source import Draft, Refused, Source
from perftool.patch.work import Wish, Work

LOADER = (
    "dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "num_workers", "collate_fn", "pin_memory",
    "drop_last", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
)  # fmt: skip
"""The positional arguments of torch.utils.data.DataLoader."""

Wanted = Mapping[str, cst.BaseExpression | None]
"""Keyword to its value; None where it is to go."""

_LONGEST = 100  # characters of a call on one line
_NO_SPACE = cst.AssignEqual(whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace(""))


def lay_loader_arguments(wishes: Sequence[Wish], work: Work) -> None:
    _lay("loader", "loader_arguments", LOADER, wishes, work)


def lay_optimizer_arguments(wishes: Sequence[Wish], work: Work) -> None:
    _lay("optimizer", "optimizer_arguments", (), wishes, work)


def _lay(
    kind: Literal["loader", "optimizer"], place: str, positions: Sequence[str], wishes: Sequence[Wish], work: Work
) -> None:
    wanted: dict[str, cst.BaseExpression | None] = {}
    for wish in wishes:
        wanted |= keywords(wish[place])
    for call, draft in builders(kind, work).items():
        change_arguments(draft, call, wanted, positions)


def builders(kind: Literal["loader", "optimizer"], work: Work) -> dict[cst.Call, Draft]:
    """The calls that build the loaders, or optimizers, of a training, with the drafts of their files.

    A framework may build another from the user's own; it is in none of the user's files. Raises Refused where the
    framework alone builds one, and for a call that cannot be found.
    """
    found: dict[cst.Call, Draft] = {}
    refusal: Refused | None = None
    what = "DataLoader" if kind == "loader" else "optimizer"
    for site in work.used(kind, what):
        try:
            draft = work.draft(site.file)
            found[draft.source.call(site)] = draft
        except Refused:
            if not site.framework:
                raise
            refusal = Refused(f"{site.framework} builds the {what}")
    if refusal and not found:
        raise refusal
    return found


def keywords(text: str) -> dict[str, cst.BaseExpression]:
    """'num_workers=2, pin_memory=True' as name to value."""
    call = cst.parse_expression(f"call({text})")
    assert isinstance(call, cst.Call)
    return {arg.keyword.value: arg.value for arg in call.args if arg.keyword}


def change_arguments(draft: Draft, call: cst.Call, wanted: Wanted, positions: Sequence[str]) -> None:
    """Let a call have these keyword arguments. Raises Refused for one that may have them in `*` or `**`."""
    check_plain(draft.source, call)
    if not put(call, wanted, positions).deep_equals(call):
        draft.change_call(call, lambda updated: fitted(draft.source, put(updated, wanted, positions)))


def check_plain(source: Source, call: cst.Call) -> None:
    """Raise Refused for a call whose arguments cannot be told, or that stands within a string."""
    if any(isinstance(parent, cst.FormattedString) for _, parent in source.parents(call)):
        raise Refused(f"the call at {source.path}:{source.line(call)} stands within a string")
    packed = next((arg for arg in call.args if arg.star), None)
    if packed is not None:
        text = source.code(packed.with_changes(comma=cst.MaybeSentinel.DEFAULT))
        raise Refused(f"the call at {source.path}:{source.line(call)} takes {text}, which may hold the same words")


def put(call: cst.Call, wanted: Wanted, positions: Sequence[str]) -> cst.Call:
    """The call with arguments added, replaced where they stand, or taken away; in its own style of line breaks."""
    kept: list[cst.Arg] = []
    last = call.args[-1] if call.args else None
    names = {name_of(index, arg, positions) for index, arg in enumerate(call.args)}
    for index, arg in enumerate(call.args):
        name = name_of(index, arg, positions)
        if name is None or name not in wanted:
            kept.append(arg)
        elif (value := wanted[name]) is not None:
            same = value.deep_equals(arg.value)
            kept.append(arg if same else arg.with_changes(value=value))
    added = [
        cst.Arg(value, cst.Name(name), _NO_SPACE)
        for name, value in wanted.items()
        if value is not None and name not in names
    ]
    if last is None or not (added or kept[-1:] != [last]):
        return call.with_changes(args=[*kept, *added])
    args = _joined(call, kept, added, last)
    return call.with_changes(args=[_apart(arg) for arg in args] if added else args)


def fitted(source: Source, call: cst.Call) -> cst.Call:
    """The call with an argument on each line where it is too long for one."""
    code = source.code(call)
    if len(code) <= _LONGEST or "\n" in code:
        return call
    inner = cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace(source.module.default_indent))
    outer = cst.ParenthesizedWhitespace(indent=True)
    ends = [inner] * (len(call.args) - 1) + [outer]
    args = [arg.with_changes(comma=cst.Comma(whitespace_after=end)) for arg, end in zip(call.args, ends, strict=True)]
    return call.with_changes(whitespace_before_args=inner, args=args)


def name_of(index: int, arg: cst.Arg, positions: Sequence[str]) -> str | None:
    if arg.keyword:
        return arg.keyword.value
    return positions[index] if index < len(positions) else None


def with_names(call: cst.Call, positions: Sequence[str]) -> cst.Call:
    """The call with every argument but the first as a keyword."""
    args = [
        arg if arg.keyword or not index else arg.with_changes(keyword=cst.Name(positions[index]), equal=_NO_SPACE)
        for index, arg in enumerate(call.args)
    ]
    return call.with_changes(args=args)


def _apart(arg: cst.Arg) -> cst.Arg:
    """A generator that is the only argument needs parentheses beside others."""
    value = arg.value
    if isinstance(value, cst.GeneratorExp) and not value.lpar:
        return arg.with_changes(value=value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]))
    return arg


def _joined(call: cst.Call, kept: Sequence[cst.Arg], added: Iterable[cst.Arg], last: cst.Arg) -> list[cst.Arg]:
    """The arguments with commas between them. `last` was the last of the call: what followed it, the comma and the
    break before the parenthesis, now follows the new last one."""
    args = [*kept, *added]
    if not args:
        return []
    start = call.whitespace_before_args
    between: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    if isinstance(start, cst.ParenthesizedWhitespace):
        between = start.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=[])
    after = last.comma.whitespace_after if isinstance(last.comma, cst.Comma) else last.whitespace_after_arg
    joined = []
    for arg in args[:-1]:
        if arg is last or not isinstance(arg.comma, cst.Comma):
            gap = between
            if arg is last and isinstance(after, cst.ParenthesizedWhitespace):  # its comment stays with it
                indent = between if isinstance(between, cst.ParenthesizedWhitespace) else start_of_line(call)
                gap = indent.with_changes(first_line=after.first_line)
            arg = arg.with_changes(comma=cst.Comma(whitespace_after=gap), whitespace_after_arg=cst.SimpleWhitespace(""))
        joined.append(arg)
    end = after
    if isinstance(after, cst.ParenthesizedWhitespace) and args[-1] is not last:
        end = after.with_changes(first_line=cst.TrailingWhitespace())
    if isinstance(last.comma, cst.Comma):
        return [*joined, args[-1].with_changes(comma=cst.Comma(whitespace_after=end))]
    return [*joined, args[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=end)]


def start_of_line(call: cst.Call) -> cst.ParenthesizedWhitespace:
    """The break between two arguments of a call whose first stands on the line of its parenthesis."""
    breaks = (
        arg.comma.whitespace_after
        for arg in call.args
        if isinstance(arg.comma, cst.Comma) and isinstance(arg.comma.whitespace_after, cst.ParenthesizedWhitespace)
    )
    found = next(breaks, cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace("    ")))
    return found.with_changes(empty_lines=[])
