"""Compute the loss in reduced precision with torch.autocast.

What it changes: matmuls and convolutions of the forward pass, and with them their backward, run in bfloat16
    or float16; weights, gradients and the optimizer stay in float32. `fp16` scales the loss so that small
    gradients survive.
When it helps: when matmuls decide the step and the hardware has matrix units for the type (AMX or AVX-512
    BF16 on CPUs, tensor cores on GPUs); it also halves the memory of activations.
When it hurts: small layers, where the casts cost more than the matmuls save; a CPU without units for the type,
    which emulates it. It changes numerics: the loss is compared over several seeds before it is
    advised.
Source: https://docs.pytorch.org/docs/stable/amp.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from perftool.scenario import NO_BF16_UNITS, Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, FULL_PRECISION, SLOW_TYPE, Engaged, Proving, Settings

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Loss, Plan, Update

VALUES = ("off", "bf16", "fp16")
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def default(context: Context) -> str:
    return context.workload.autocast or "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "bf16" and context.on_cuda and (context.machine.device_capability or [0])[0] < 8:
        return "bfloat16 needs a GPU of compute capability 8.0 or newer; use fp16"
    own = context.workload.autocast
    if value == "off" and own is not None:
        return f"the script itself computes in {own}; take that out of it, or vary its own option by --vary"
    return refuse_unlisted(value, VALUES)


def discouraged(value: str, context: Context) -> str | None:
    if value == default(context):
        return None
    if context.on_cuda:
        has_bf16 = (context.machine.device_capability or [0])[0] >= 8
        return "bf16 is as fast on this GPU, and needs no scaled loss" if value == "fp16" and has_bf16 else None
    if value == "bf16" and not context.has_bf16_units:
        return f"{NO_BF16_UNITS}, so it is emulated: many times slower than float32"
    if value == "fp16" and not context.machine.cpu_fp16_matrix:
        instead = "; use bf16" if context.has_bf16_units else ""
        return f"this CPU has no AMX-FP16, so float16 is emulated and many times slower{instead}"
    return None


def clash(value: str, others: Settings) -> str | None:
    if value == "fp16" and others.get("cuda_graphs") == "on":
        return "a scaled loss makes the step wait for the GPU, which no graph can hold; use amp=bf16"
    return None


def cures(value: str, _: Context) -> Mapping[str, Sequence[str]]:
    return {FULL_PRECISION: ("bf16",)} if value == "off" else {SLOW_TYPE: ("bf16", "off")}


def apply(plan: Plan, value: str) -> Plan:
    if value == "off":
        return plan
    device_type = plan.device.partition(":")[0]

    def autocast(loss: Loss) -> Loss:
        import torch

        dtype = getattr(torch, DTYPES[value])

        def within(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            with torch.autocast(device_type, dtype=dtype):
                return loss(model, batch)

        return within

    plan = replace(plan, loss=(*plan.loss, autocast))
    return replace(plan, update=scaled_update(device_type)) if value == "fp16" else plan


def scaled_update(device_type: str) -> Update:
    """Backward of the scaled loss, and an optimizer step that is skipped where gradients overflowed. Each training
    finds a scale of its own."""
    scalers: WeakKeyDictionary[torch.optim.Optimizer, torch.amp.GradScaler] = WeakKeyDictionary()

    def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        scaler = scalers.get(optimizer)
        if scaler is None:
            import torch

            scaler = scalers[optimizer] = torch.amp.GradScaler(device_type)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    return update


def proof(training: Live, value: str) -> Proving:
    """What a step keeps for its backward shows the types that it computes in, compiled or not."""
    import torch

    seen: set[torch.dtype] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen.add(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield BARE_STEP
    wanted = getattr(torch, DTYPES.get(value, "float32"))
    reduced = {torch.bfloat16, torch.float16} & seen
    ok = wanted in seen if value != "off" else not reduced
    kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in seen)) or "nothing"
    return Engaged(ok=ok, evidence=f"one step kept {kinds} for its backward")


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    device_type = context.machine.device.partition(":")[0]
    loss_context = f'torch.autocast("{device_type}", dtype=torch.{DTYPES[value]})'
    if value == "bf16":
        return Code(loss_context=loss_context)
    return Code(
        setup=f'scaler = torch.amp.GradScaler("{device_type}")',
        loss_context=loss_context,
        update="scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
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
    cures=cures,
    discouraged=discouraged,
    clash=clash,
    changes="numerics",
    typical_gain=2.0,
)
