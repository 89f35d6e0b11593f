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

from perftool.records import FULL_PRECISION, Engaged
from perftool.scenario import NO_BF16_UNITS, Code, Context, Scenario, refuse_unlisted

if TYPE_CHECKING:
    from perftool.training import Plan, Training

VALUES = ("highest", "high", "medium")
FLOAT32_ERROR = 1e-5  # relative: float32 stays well below, TF32 and bfloat16 are at 1e-4 and more


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


def proof(training: Training, value: str) -> Engaged:
    """A product with the training's largest weight matrix, against the same in float64."""
    import torch

    matrices = [part.detach() for part in training.module.parameters() if part.ndim == 2]
    weight = max(matrices, key=torch.Tensor.numel, default=torch.rand(512, 512, device=training.device)).float()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(128, weight.shape[1], generator=generator).to(weight.device)
    exact = inputs.double() @ weight.double().T
    error = float((inputs @ weight.T - exact).norm() / exact.norm())
    return Engaged(
        ok=(error > FLOAT32_ERROR) == (value != "highest"),
        evidence=f"a float32 product with a weight matrix is off by {error:.1e}",
    )


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
    code=code,
    cures={FULL_PRECISION: ("high", "medium")},
    changes="numerics",
    typical_gain=1.8,
)
