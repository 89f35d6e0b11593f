"""Treat numbers too small for full precision as zero.

What it changes: `torch.set_flush_denormal(True)`: the CPU takes denormal numbers (float32 below 1.2e-38) as zero,
    and makes none. It holds for the threads that are started later, so it must come before the first operation.
When it helps: data, weights or averages of the optimizer that decay towards zero: arithmetic with denormal numbers
    was seen to take a hundred times longer.
When it hurts: it changes numerics, though hardly ever a result; where there are no denormal numbers it changes
    nothing at all, so it is tried only where some were seen.
Source: https://docs.pytorch.org/docs/stable/generated/torch.set_flush_denormal.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, DENORMALS, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("off", "on")
PROOF_ELEMENTS = 2**20  # enough that every thread gets some
DENORMAL_BITS = 1000  # of a float32 whose exponent is 0


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "on" and context.on_cuda:
        return "it is a mode of the CPU, and the training runs on the GPU"
    return refuse_unlisted(value, VALUES)


def discouraged(value: str, context: Context) -> str | None:
    if value == "on" and not context.workload.denormal_values:
        return "no denormal number was seen in the first batch or in the parameters"
    return None


def apply(plan: Plan, value: str) -> Plan:
    # First of all that is done to the process: threads keep the mode that they start with.
    return plan if value == "off" else replace(plan, process=(flush, *plan.process))


def flush() -> None:
    """Set the mode for this thread and those that it starts. Raises SettingError where the CPU has none."""
    import torch

    from perftool.plan import SettingError

    if not torch.set_flush_denormal(True):
        raise SettingError("this CPU cannot flush denormal numbers")


def proof(training: Live, value: str) -> Proving:
    """What is left of denormal numbers after an operation that all threads share."""
    import torch

    yield BARE_STEP
    # From its bits: a conversion would already make it zero.
    denormal = torch.full((PROOF_ELEMENTS,), DENORMAL_BITS, dtype=torch.int32).view(torch.float32)
    flushed = int((denormal * 0.5).view(torch.int32).eq(0).sum())
    return Engaged(
        ok=flushed == (PROOF_ELEMENTS if value == "on" else 0),
        evidence=f"{flushed / PROOF_ELEMENTS:.0%} of denormal numbers were flushed",
    )


def present() -> str:
    """By an operation that is too short for another thread than this."""
    import torch

    denormal = torch.full((1,), DENORMAL_BITS, dtype=torch.int32).view(torch.float32)
    return "off" if (denormal * 0.5).view(torch.int32).item() else "on"


def code(value: str, _: Context) -> Code:
    return Code(setup="torch.set_flush_denormal(True)  # before the first operation") if value == "on" else Code()


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
    cures={DENORMALS: ("on",)},
    discouraged=discouraged,
    changes="numerics",
)
