"""Let cuDNN time its algorithms for each convolution and keep the quickest.

What it changes: `torch.backends.cudnn.benchmark = True`: at the first batch of each shape cuDNN runs every algorithm
    that it has for a convolution, and takes the quickest from there on.
When it helps: convolutions on a GPU, with batches of few shapes.
When it hurts: batches whose shape changes all the time, each of which is timed again; another algorithm may be chosen
    in the next run, so that results differ in the last digits.
Source: https://docs.pytorch.org/docs/stable/backends.html#torch.backends.cudnn.torch.backends.cudnn.benchmark
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("off", "on")


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "on" and not context.on_cuda:
        return "cuDNN is for GPUs, and the training runs on the CPU"
    if value == "on" and not context.workload.modules.convolution_dims:
        return "the model has no convolution for cuDNN to choose an algorithm for"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    def prepare() -> None:
        import torch

        torch.backends.cudnn.benchmark = value == "on"

    return replace(plan, process=(*plan.process, prepare))


def proof(training: Live, value: str) -> Proving:
    """What torch says after a step, and whether cuDNN is used at all."""
    import torch

    yield BARE_STEP
    is_used = torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    told = "times its algorithms" if present() == "on" else "chooses by rule"
    return Engaged(
        ok=present() == value and (is_used or value == "off"), evidence=f"cuDNN {told if is_used else 'is not used'}"
    )


def present() -> str:
    import torch

    return "on" if torch.backends.cudnn.benchmark else "off"


def code(value: str, _: Context) -> Code:
    return Code(setup="torch.backends.cudnn.benchmark = True") if value == "on" else Code()


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
    typical_gain=1.1,
)
