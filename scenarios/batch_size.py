"""Feed more samples per step.

What it changes: the number of samples in a batch, and with it the optimisation itself: fewer and less noisy
    steps per epoch. More samples per second is not the same training, so it is tried only with `--allow
    batch_size`.
When it helps: when a step costs much beside its arithmetic (Python, kernel launches, the optimizer), or the
    device is not filled by a batch.
When it hurts: memory grows with it, and a larger batch usually needs another learning rate to learn as much
    per sample.
Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import NO_LOADER, Code, Context, Scenario
from perftool.words import FETCH, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

FACTORS = (2, 4, 8, 16)


def default(context: Context) -> str:
    size = context.workload.batch_size
    return "whole" if size is None else str(size)


def values(context: Context) -> Sequence[str]:
    size, rows = context.workload.batch_size, context.workload.dataset_rows
    if size is None:
        return ("whole",)
    return [str(size), *(str(size * factor) for factor in FACTORS if rows is None or size * factor <= rows)]


def refusal(value: str, context: Context) -> str | None:
    if value == default(context):
        return None
    if context.workload.dataset_kind == "own":
        return f"{NO_LOADER}; vary its own option with --vary '--batch-size=32|64'"
    if context.workload.batch_size is None:
        return "the tensors are fed whole at every step"
    if not value.isdecimal() or int(value) < 1:
        return f"it takes a whole number of samples of at least 1, not '{value}'"
    rows = context.workload.dataset_rows
    if rows is not None and int(value) > rows:
        return f"the dataset has only {rows} rows"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "whole" else replace(plan, batch_size=int(value))


def proof(training: Live, value: str) -> Proving:
    """Some part of a few batches has so many rows; the last of an epoch may have fewer. Where samples lie one after
    another, as ragged ones do, nothing has, and the loader's word is all there is."""
    seen: set[int] = set()
    for _ in range(2):
        seen |= sizes_of((yield FETCH))
    if value == "whole" or int(value) in seen:
        return Engaged(ok=True, evidence=f"a batch has {value} samples")
    own = training.plan.workload.batch_size if training.plan.workload is not None else None
    if own in seen:
        return Engaged(ok=False, evidence=f"a batch still has {own} samples")
    return Engaged(ok=True, evidence=f"the loader draws {value} samples; a batch does not tell")


def sizes_of(batch: Any) -> set[int]:
    """Dimensions of the tensors in a batch, and lengths of the lists and tuples of what is no tensor."""
    import torch

    from perftool.training import tensors_of

    found = {size for tensor in tensors_of(batch) for size in tensor.shape}
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    rows = [part for part in (batch, *parts) if isinstance(part, (list, tuple))]
    return found | {len(part) for part in rows if not all(isinstance(one, torch.Tensor) for one in part)}


def code(value: str, context: Context) -> Code:
    return Code() if value == default(context) else Code(batch_size=value)


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
    changes="optimisation",
    typical_gain=2.0,
)
