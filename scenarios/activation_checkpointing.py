"""Keep less of the forward pass, and compute it again in the backward.

What it changes: each block of the model (or each part of a long sequence of modules) keeps only its input; what lies
    within is computed a second time when its backward needs it. The training is the same.
When it helps: activations that do not fit, or a limit on memory: a larger batch or model fits then.
When it hurts: a step takes about a third longer. On a CPU what is freed in between may stay in glibc's heap, so that
    nothing is saved. It is tried only where memory is what is wanted, or limited.
Source: https://docs.pytorch.org/docs/stable/checkpoint.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Any

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving, Settings

if TYPE_CHECKING:
    from torch import nn

    from perftool.plan import Live, Plan

VALUES = ("off", "on")


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    facts = context.workload
    if value == "on" and not facts.modules.block_lists and not facts.modules.chains:
        return "the model has no list of blocks and no long sequence of modules to compute again one by one"
    if value == "on" and facts.changes_buffers:
        return "the forward pass changes buffers (running statistics, as BatchNorm's), which would be changed twice"
    if value == "on" and facts.compiled:
        return "the script compiles its model itself, and chooses what to keep there"
    return refuse_unlisted(value, VALUES)


def clash(value: str, others: Settings) -> str | None:
    if value == "off":
        return None
    if others.get("compiled_step", "off") != "off":
        return "what is differentiated as one function has no saved tensors to leave out; leave compiled_step out"
    if others.get("torch_compile", "off") != "off":
        return "compiled code chooses by itself what to keep; leave torch_compile out"
    if others.get("cuda_graphs", "off") != "off":
        return "what is computed again asks for the random numbers of before, which no graph can hold"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, module=(*plan.module, checkpoint_parts))


class Again:
    """The forward pass of a part, which counts how often it runs in a backward pass, for the proof."""

    runs = 0  # in this process

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        import torch

        Again.runs += torch._C._current_graph_task_id() != -1
        return self._forward(*arguments, **options)


def checkpoint_parts(module: nn.Module) -> bool:
    """Have a module's blocks, or the parts of its sequences where it has none, keep only what goes into them; those
    with running statistics stay as they are, which would be changed twice. Whether there were any."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint, checkpoint_sequential

    from perftool.probes.modules import blocks_of, chains_of

    blocks = [block for name in blocks_of(module) for block in module.get_submodule(name).children()]
    chains: list[Any] = [module.get_submodule(name) for name in chains_of(module)]
    calm = [one for one in blocks if not keeps_statistics(one)]
    for block in calm:
        block.forward = partial(checkpoint, Again(block.forward), use_reentrant=False)
    links = [one for one in chains if not keeps_statistics(one)]
    for chain in links:
        parts = [Again(one) for one in chain]  # not its children, of which each is there once
        chain.forward = partial(checkpoint_sequential, parts, parts_of(len(parts)), use_reentrant=False)
    return bool(calm or links)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether its forward pass changes running statistics, as BatchNorm's."""
    return any(getattr(one, "running_mean", None) is not None for one in module.modules())


def parts_of(length: int) -> int:
    """In how many a sequence is cut so that their inputs and one part's activations are least (Chen et al. 2016)."""
    return max(2, isqrt(length))


def proof(training: Live, value: str) -> Proving:
    """How often parts run in a backward pass."""
    before = Again.runs
    yield BARE_STEP
    runs = Again.runs - before
    return Engaged(ok=bool(runs) == (value == "on"), evidence=f"a step computed {runs} parts again in its backward")


def code(value: str, context: Context) -> Code:
    modules = context.workload.modules
    if value == "off":
        return Code()
    lists = [
        f"for each_block in {_named(name)}.children():\n"
        "    each_block.forward = functools.partial(\n"
        "        torch.utils.checkpoint.checkpoint, each_block.forward, use_reentrant=False\n    )"
        for name in modules.block_lists
    ]
    chains = [
        f"{_named(name)}.forward = functools.partial(\n"
        f"    torch.utils.checkpoint.checkpoint_sequential, list({_named(name)}), {parts_of(length)}, "
        "use_reentrant=False\n)"
        for name, length in modules.chains.items()
    ]
    return Code(imports="import functools\nimport torch.utils.checkpoint", model="\n".join([*lists, *chains]))


def _named(name: str) -> str:
    return f'model.get_submodule("{name}")' if name else "model"


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    clash=clash,
    for_memory=True,
    typical_gain=0.8,
)
