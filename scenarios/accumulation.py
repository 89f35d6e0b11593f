"""Cut each batch into parts, and add up their gradients before the one update.

What it changes: the forward and backward pass run on one part of the batch after another; the optimizer steps once, on
    the gradients of the whole batch. With dropout each part draws masks of its own.
When it helps: a batch whose activations do not fit, or a limit on memory.
When it hurts: smaller matmuls, and more of them: a step takes longer. It is tried only where memory is what is wanted,
    or limited. A loss that is no mean over samples would be another one, which its proof finds.
Source: https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario
from perftool.words import FETCH, Engaged, Proving, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from perftool.plan import Live, Loss, Plan
    from perftool.workload import Batch

PARTS = (2, 4, 8)
GRAPHED = ("reduce-overhead", "max-autotune")  # modes of torch_compile
OFF_MOST = 0.02  # of the gradient, by which the parts' sum may differ: some bits of bfloat16


def default(_: Context) -> str:
    return "1"


def values(context: Context) -> Sequence[str]:
    size = context.workload.batch_size or context.workload.dataset_rows or 1
    return ("1", *(str(parts) for parts in PARTS if parts <= size))


def refusal(value: str, context: Context) -> str | None:
    facts = context.workload
    if not value.isdecimal() or int(value) < 1:
        return f"it takes a number of parts of at least 1, not '{value}'"
    if value == "1":
        return None
    if facts.batch_form == "nested" and facts.driver == "workload":
        return "a batch is no plain list, tuple or dict of tensors, which alone can be cut"
    if facts.changes_buffers:
        return (
            "the forward pass changes buffers (running statistics, as BatchNorm's), which parts would change otherwise"
        )
    return None


def clash(value: str, others: Settings) -> str | None:
    if value == "1":
        return None
    if others.get("compiled_step", "off") != "off":
        return "the compiled step is one of the whole batch; leave compiled_step out"
    if others.get("torch_compile") in GRAPHED:  # https://github.com/pytorch/pytorch/issues/169545
        return "its CUDA graphs would write the gradients of one part over those of another; use torch_compile=default"
    if others.get("amp") == "fp16":
        return "the scale of the loss would be that of the last part alone; use amp=bf16"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return replace(plan, micro_batches=int(value))


def proof(training: Live, value: str) -> Proving:
    """Whether the parts' gradients add up to those of a batch, with dropout left out."""
    from perftool.training import copied

    if value == "1":
        return Engaged(ok=training.plan.micro_batches == 1, evidence="a batch is one piece")
    batch = copied((yield FETCH), training.device, non_blocking=False)
    if training.plan.steps_per_call > 1:
        batch = batch[0]
    off = difference(training, batch, int(value))
    told = f"the gradients of {value} parts add up to those of a batch, but for {off:.1e} of them"
    if off > OFF_MOST:
        told = (
            f"the gradients of {value} parts differ from those of a batch by {off:.0%}: the loss is no mean of samples"
        )
    return Engaged(ok=off <= OFF_MOST, evidence=told)


def difference(training: Live, batch: Batch, parts: int) -> float:
    """Between the gradient of a batch and the sum of its parts', as a share of the former. Trains nothing."""
    import torch

    from perftool.training import parts_of

    workload = training.plan.workload
    assert workload is not None, "a script's batches are its own"
    loss: Loss = workload.loss
    for wrap in training.plan.loss:
        loss = wrap(loss)
    trained = [one for one in training.module.parameters() if one.requires_grad]

    def gradient(part: Batch, share: float) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss(training.model, part) * share, trained, allow_unused=True))

    with without_chance(training.module):
        whole = gradient(batch, 1.0)
        found = [gradient(part, share) for part, share in parts_of(batch, parts)]
    off = size = 0.0
    for one, *others in zip(whole, *found, strict=True):
        summed = sum((part.to_dense() for part in others if part is not None), torch.zeros(()))
        dense = torch.zeros(()) if one is None else one.to_dense()
        off += float((summed.to(dense.device) - dense).square().sum())
        size += float(dense.square().sum())
    return float((off / size) ** 0.5) if size else 0.0


@contextmanager
def without_chance(module: nn.Module) -> Iterator[None]:
    """The module as it is evaluated, but for recurrent layers, whose backward needs them to be training."""
    from torch import nn

    modes = [(one, one.training) for one in module.modules()]
    recurrent = [(one, one.dropout) for one in module.modules() if isinstance(one, nn.RNNBase)]
    module.eval()
    for layer, _ in recurrent:
        layer.train()
        layer.dropout = 0.0
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for layer, dropout in recurrent:
            layer.dropout = dropout


def code(value: str, context: Context) -> Code:
    if value == "1":
        return Code()
    form = _FORMS.get(context.workload.batch_form, _SEQUENCE)
    return Code(step=_STEP.format(**{key: text.format(parts=value) for key, text in form.items()}))


_SEQUENCE = {
    "parts": "zip(*(one.chunk({parts}) for one in batch))",
    "rows": "len(part[0])",
    "all_rows": "len(batch[0])",
}
_FORMS = {
    "tensor": {"parts": "batch.chunk({parts})", "rows": "len(part)", "all_rows": "len(batch)"},
    "dict": {
        "parts": "(dict(zip(batch, one)) for one in zip(*(one.chunk({parts}) for one in batch.values())))",
        "rows": "len(next(iter(part.values())))",
        "all_rows": "len(next(iter(batch.values())))",
    },
}
_STEP = """\
def step(batch):
    optimizer.zero_grad()
    total = 0.0
    for part in {parts}:
        loss = loss_of(model, part) * ({rows} / {all_rows})
        loss.backward()
        total = total + loss.detach()
    optimizer.step()
    return total"""


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
    changes="numerics",
    typical_gain=0.9,
)
