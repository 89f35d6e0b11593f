"""Lay images out with their channels last in memory.

What it changes: `model.to(memory_format=torch.channels_last)`: the weights of convolutions lie with their channels
    last, and what the convolutions return does, too. No value changes, but for the order of sums.
When it helps: convolutions, on a GPU above all under autocast, whose tensor cores want that layout; on a CPU oneDNN
    is spared its own changes of layout.
When it hurts: operations between the convolutions that have no kernel for the layout, and copy. Recurrent and linear
    layers gain nothing.
Source: https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving

if TYPE_CHECKING:
    from torch import nn

    from perftool.plan import Live, Plan

VALUES = ("off", "on")
FORMATS = {2: "torch.channels_last", 3: "torch.channels_last_3d"}
"""Dimensions of an image to its layout."""


def default(context: Context) -> str:
    return "on" if context.workload.modules.channels_last else "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    modules = context.workload.modules
    if value == "off" and modules.channels_last:
        return "the training lays its convolutions out so itself; change that there"
    found = FORMATS.keys() & set(modules.convolution_dims)
    if value == "on" and not found:
        return "the model has no convolution over two or three dimensions"
    if value == "on" and len(found) > 1:
        return "the model has convolutions over two and over three dimensions, which no one layout is for"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, module=(*plan.module, lay_out))


def lay_out(module: nn.Module) -> bool:
    """The weights of a module's convolutions, channels last. Whether it has any."""
    from perftool.probes.modules import channels_last_format, convolution_dims

    found = FORMATS.keys() & set(convolution_dims([module]))
    for dims in found:
        module.to(memory_format=channels_last_format(dims))  # type: ignore[call-overload]
    return bool(found)


def proof(training: Live, value: str) -> Proving:
    """How the convolutions' outputs lie in one step."""
    from perftool.probes.modules import convolutions, is_channels_last, lies_channels_last

    calls, so, seen = 0, 0, 0

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal calls, so, seen
        calls += 1
        lies_so, lies_plain = lies_channels_last(output), output.is_contiguous()
        seen += lies_so != lies_plain  # else both are the same
        so += lies_so and not lies_plain

    hooks = [one.register_forward_hook(look) for one in convolutions([training.module])]
    try:
        yield BARE_STEP
    finally:
        for hook in hooks:
            hook.remove()
    told = f"{so} of {seen} outputs of convolutions lie channels last"
    if not calls:  # compiled code calls no hooks
        lie_so = is_channels_last([training.module])
        return Engaged(ok=lie_so == (value == "on"), evidence=f"the weights {'lie' if lie_so else 'do not lie'} so")
    if not seen:
        return Engaged(ok=True, evidence="no output of a convolution tells one layout from the other")
    return Engaged(ok=bool(so) == (value == "on"), evidence=told)


def code(value: str, context: Context) -> Code:
    if value == default(context):
        return Code()
    dims = max(FORMATS.keys() & set(context.workload.modules.convolution_dims), default=2)
    return Code(model=f"model = model.to(memory_format={FORMATS[dims]})")


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    typical_gain=1.2,
)
