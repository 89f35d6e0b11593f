"""Keep less of the forward pass, and compute it again in the backward.

What it changes: each block of the model (or each part of a long sequence of modules) keeps only its input; what lies
    within is computed a second time when its backward needs it. The training is the same.
When it helps: activations that do not fit, or a limit on memory: a larger batch or model fits then.
When it hurts: a step takes about a third longer. On a CPU what is freed in between may stay in glibc's heap, so that
    nothing is saved. It is tried only where memory is what is wanted, or limited.
Source: https://docs.pytorch.org/docs/stable/checkpoint.html
"""

from __future__ import annotations

from collections.abc import Sequence
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
    if others.get("cuda_graphs", "off") != "off":
        return "what is computed again asks for the random numbers of before, which no graph can hold"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, module=(*plan.module, checkpoint_parts))


def checkpoint_parts(module: nn.Module) -> None:
    """Have a module's blocks, or the parts of its sequences where it has none, keep only what goes into them."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint, checkpoint_sequential

    from perftool.probes.modules import blocks_of, chains_of

    for name in blocks_of(module):
        for block in module.get_submodule(name).children():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for name in chains_of(module):
        chain: Any = module.get_submodule(name)
        chain.forward = partial(checkpoint_sequential, chain, parts_of(len(chain)), use_reentrant=False)


def parts_of(length: int) -> int:
    """In how many a sequence is cut so that their inputs and one part's activations are least (Chen et al. 2016)."""
    return max(2, isqrt(length))


def proof(training: Live, value: str) -> Proving:
    """How often the first module within each part runs for each call of that."""
    from perftool.probes.modules import blocks_of, chains_of

    whole = training.module
    outer = [block for name in blocks_of(whole) for block in whole.get_submodule(name).children()]
    outer += [whole.get_submodule(name) for name in chains_of(whole)]
    inner = [next(iter(one.children())) for one in outer]
    calls = dict.fromkeys([*outer, *inner], 0)

    def count(module: nn.Module, _inputs: Any) -> None:
        calls[module] += 1

    hooks = [module.register_forward_pre_hook(count) for module in calls]
    try:
        yield BARE_STEP
    finally:
        for hook in hooks:
            hook.remove()
    again = sum(calls[part] > calls[one] for one, part in zip(outer, inner, strict=True))
    ran = sum(calls[one] > 0 for one in outer)
    ok = 0 < again == ran if value == "on" else not again
    return Engaged(ok=ok, evidence=f"{again} of {ran} parts were computed a second time in the backward")


def code(value: str, context: Context) -> Code:
    modules = context.workload.modules
    if value == "off":
        return Code()
    lists = [
        f"for block in {_named(name)}.children():\n"
        "    block.forward = partial(checkpoint, block.forward, use_reentrant=False)"
        for name in modules.block_lists
    ]
    chains = [
        f"{_named(name)}.forward = partial(\n"
        f"    checkpoint_sequential, {_named(name)}, {parts_of(length)}, use_reentrant=False\n)"
        for name, length in modules.chains.items()
    ]
    return Code(
        imports="from functools import partial\nfrom torch.utils.checkpoint import checkpoint, checkpoint_sequential",
        model="\n".join([*lists, *chains]),
    )


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
