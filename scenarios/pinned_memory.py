"""Load batches into pinned host memory and copy them to the GPU without waiting.

What it changes: the DataLoader puts each batch into page-locked memory, and the copy to the device returns at
    once. With `prefetch` the copy is also on a stream of its own, so that it runs while the GPU still computes the step
    before.
When it helps: when the host waits for the copy of a batch: pinned memory is copied faster, and the host goes on
    meanwhile. With `on` the copy still comes between two steps on the GPU, since it is on their stream; `prefetch`
    hides it there.
When it hurts: small batches, where the pinning thread competes with the training's Python; host memory that
    is short, since pinned pages cannot be swapped.
Source: https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import NO_LOADER, Code, Context, Scenario, refuse_unlisted
from perftool.words import FETCH, SLOW_COPY, STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("off", "on", "prefetch")


def default(context: Context) -> str:
    return "on" if context.on_cuda and context.workload.loader_options.get("pin_memory") else "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value != default(context) and context.workload.dataset_kind == "own":
        return NO_LOADER
    if value in ("on", "prefetch") and not context.on_cuda:
        return "there is no accelerator to copy to: the training runs on the CPU"
    if value in ("on", "prefetch") and context.workload.batch_size is None:
        return "the tensors are fed whole, with no loader to pin them"
    if value in ("on", "prefetch") and context.workload.dataset_on_device:
        return "the dataset is on the GPU already, so no batch is copied to it"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    wanted = value != "off"
    return replace(
        plan,
        loader={**plan.loader, "pin_memory": wanted},
        non_blocking=wanted,
        copy_aside=value == "prefetch",
    )


def proof(training: Live, value: str) -> Proving:
    """The tensors of a fetched batch are in pinned memory."""
    from perftool.training import CopiedAside, tensors_of

    batch = yield FETCH
    before = CopiedAside.steps
    if value == "prefetch":
        yield STEP
    pinned = [tensor.is_pinned() for tensor in tensors_of(batch)]
    wanted = value != "off"
    aside = CopiedAside.steps > before
    return Engaged(
        ok=(bool(pinned) and all(pinned) if wanted else not any(pinned)) and aside == (value == "prefetch"),
        evidence=f"{sum(pinned)} of {len(pinned)} tensors of a batch are in pinned memory"
        + (", and copied on a stream of their own" if aside else ""),
    )


def code(value: str, context: Context) -> Code:
    if value == default(context):
        return Code()
    if value == "off":
        return Code(loader_arguments="pin_memory=False")
    return Code(
        loader_arguments="pin_memory=True",
        batch_calls=".pin_memory()",
        copy_arguments="non_blocking=True",
        copy_stream="copies = torch.cuda.Stream()" if value == "prefetch" else "",
    )


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    switchable=True,
    cures={SLOW_COPY: ("prefetch", "on")},
    typical_gain=1.1,
)
