"""Choose the kernels of scaled_dot_product_attention.

What it changes: which of torch's kernels compute attention. `auto` leaves the choice to torch; each other value leaves
    it one fused kernel (`flash`, `efficient`, `cudnn`), or none (`math`: plain matmuls). What a kernel cannot serve,
    such as a mask or a type, is left to `math`.
When it helps: on new GPUs cuDNN's kernel may beat the one that torch prefers; for short sequences plain matmuls may
    beat them all.
When it hurts: long sequences: `math` keeps a matrix of length times length.
Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.probes.regions import regions_in
from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

FUSED = ("flash", "efficient", "cudnn")
VALUES = ("auto", *FUSED, "math")
SWITCHES = {"flash": "flash_sdp", "efficient": "mem_efficient_sdp", "cudnn": "cudnn_sdp"}
"""Fused kernel to torch's name for it in `torch.backends.cuda`, which holds for the CPU, too."""
OPERATIONS = {
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
    "math": "_scaled_dot_product_attention_math",
}


def default(_: Context) -> str:
    return "auto"


def values(context: Context) -> Sequence[str]:
    return VALUES if context.on_cuda else ("auto", "math")


def refusal(value: str, context: Context) -> str | None:
    if value in VALUES[1:] and not context.workload.modules.attends:
        return "the training was not seen to call scaled_dot_product_attention"
    if value in FUSED and not context.on_cuda:
        return "a CPU has one fused kernel, which auto takes; try math"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    def prepare() -> None:
        import torch

        for name, switch in SWITCHES.items():
            getattr(torch.backends.cuda, f"enable_{switch}")(value == "auto" or name in value.split("+"))

    return replace(plan, process=(*plan.process, prepare))


def proof(training: Live, value: str) -> Proving:
    """Which kernels' operations a step has."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        yield BARE_STEP
    names = {event.key for event in profiled.key_averages()}
    ran = sorted(
        kind for kind, name in OPERATIONS.items() if any(name in one and "backward" not in one for one in names)
    )
    if not ran and regions_in(profiled):  # into something else
        return Engaged(ok=present() == value, evidence=f"torch may choose {present()} while it compiles")
    if not ran:
        return Engaged(ok=value == "auto", evidence="a step computed no attention by scaled_dot_product_attention")
    return Engaged(ok=value == "auto" or ran == [value], evidence=f"a step computed attention by {' and '.join(ran)}")


def present() -> str:
    """Of the fused kernels those that torch may choose, joined by plus; auto for all, math for none."""
    import torch

    found = [name for name, switch in SWITCHES.items() if getattr(torch.backends.cuda, f"{switch}_enabled")()]
    return "auto" if len(found) == len(SWITCHES) else "+".join(found) or "math"


def code(value: str, _: Context) -> Code:
    if value == "auto":
        return Code()
    off = [switch for name, switch in SWITCHES.items() if name != value]
    return Code(setup="\n".join(f"torch.backends.cuda.enable_{switch}(False)" for switch in off))


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    present=present,
    code=code,
    switchable=True,
    typical_gain=1.05,
)
