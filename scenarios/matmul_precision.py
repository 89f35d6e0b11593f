"""Let float32 matmuls compute in a shorter type inside.

What it changes: `torch.set_float32_matmul_precision`: weights and results stay float32, but products may use
    TF32 (`high`, `medium` on a GPU) or bfloat16 (`medium` on a CPU).
When it helps: training in float32 whose time goes into large matmuls, on hardware with TF32 or bfloat16
    units.
When it hurts: it changes numerics, so the loss is compared over several seeds. With autocast most matmuls are
    short already and nothing is left to gain. `high` is known to do nothing on many CPUs.
Source: https://docs.pytorch.org/docs/stable/generated/torch.set_float32_matmul_precision.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import NO_BF16_UNITS, Code, Context, Scenario, refuse_unlisted
from perftool.words import FULL_PRECISION, Engaged

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Plan

VALUES = ("highest", "high", "medium")
WEIGHTS_MOST = 4  # whose products are looked at: the largest ones of different shapes
PROOF_ROWS = 128  # of the batch in these products


def default(_: Context) -> str:
    return "highest"


def values(context: Context) -> Sequence[str]:
    # On a GPU `medium` is `high`, on a CPU `high` has not been seen to do anything.
    return ("highest", "high") if context.on_cuda else ("highest", "medium")


def refusal(value: str, context: Context) -> str | None:
    if value != "highest" and context.on_cuda and (context.machine.device_capability or [0])[0] < 8:
        return "TF32 needs a GPU of compute capability 8.0 or newer"
    return refuse_unlisted(value, VALUES)


def discouraged(value: str, context: Context) -> str | None:
    if context.on_cuda or value == "highest" or context.has_bf16_units:
        return None
    return f"{NO_BF16_UNITS}, so its products stay in float32"


def apply(plan: Plan, value: str) -> Plan:
    def prepare() -> None:
        import torch

        # The one call that sets both generations of the API, which must not be mixed.
        torch.set_float32_matmul_precision(value)

    return replace(plan, process=(*plan.process, prepare))


def proof(training: Live, value: str) -> Engaged:
    """What torch says, and which products of the training's shapes come out otherwise than in full precision."""
    import torch

    in_force = present()
    matrices = {part.shape: part.detach().float() for part in training.module.parameters() if part.ndim == 2}
    weights = sorted(matrices.values(), key=torch.Tensor.numel)[-WEIGHTS_MOST:]
    found = [product for weight in weights for product in products(weight)]
    torch.set_float32_matmul_precision("highest")
    try:
        exact = [product for weight in weights for product in products(weight)]
    finally:
        torch.set_float32_matmul_precision(in_force)
    off = [float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]
    differ = [error for error in off if error > 0]
    if in_force != value:
        told = f"torch's precision is '{in_force}'"
    elif differ:
        told = f"{len(differ)} of {len(off)} products of the training's shapes differ, by up to {max(differ):.1e}"
    else:
        told = "set, with no effect seen on these shapes" if value != "highest" else "products are in full float32"
    return Engaged(ok=in_force == value, evidence=told)


def present() -> str:
    import torch

    return torch.get_float32_matmul_precision()


def products(weight: torch.Tensor) -> list[torch.Tensor]:
    """Those of a linear layer of this weight, of shape (outputs, inputs), with a batch: its forward, and the gradients
    of its inputs and of its weight, each of which may have a kernel of its own."""
    import torch

    outputs, inputs = weight.shape
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(PROOF_ROWS, inputs, generator=generator).to(weight.device)
    gradient = torch.rand(PROOF_ROWS, outputs, generator=generator).to(weight.device)
    return [batch @ weight.T, gradient @ weight, gradient.T @ batch, batch.T @ gradient]


def code(value: str, _: Context) -> Code:
    return Code() if value == "highest" else Code(setup=f'torch.set_float32_matmul_precision("{value}")')


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    discouraged=discouraged,
    apply=apply,
    proof=proof,
    present=present,
    code=code,
    switchable=True,
    cures={FULL_PRECISION: ("high", "medium")},
    changes="numerics",
    typical_gain=1.8,
)
