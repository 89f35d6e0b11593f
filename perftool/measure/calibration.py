"""What a stored baseline is measured beside: fixed kernels, whose time says how fast this machine is at this hour.

A product of matrices, a copy and a loop of Python, about a third of a step each: what a training's step is made of.
Changing anything here makes stored baselines worthless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perftool.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

CALIBRATION = "perftool.measure.calibration:workload"

ROWS = 320  # of each square matrix
COPIED_BYTES = 8 * 2**20
LOOPS = 20_000


def _model() -> nn.Module:
    import torch
    from torch import nn

    torch.set_num_threads(1)  # a second thread's share of a busy machine changes from launch to launch

    class Kernels(nn.Module):
        """The kernels' operands, and one parameter for an optimizer to have."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("matrix", torch.eye(ROWS))
            self.register_buffer("source", torch.ones(COPIED_BYTES // 4))
            self.register_buffer("target", torch.ones(COPIED_BYTES // 4))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                product = self.get_buffer("matrix") @ self.get_buffer("matrix")
                self.get_buffer("target").copy_(self.get_buffer("source"))
                total = 0
                for number in range(LOOPS):
                    total += number
            return self.scale * product[0, 0] * batch.mean()

    return Kernels()


def _dataset() -> tuple[torch.Tensor]:
    import torch

    return (torch.ones(1, 1),)


def _optimizer(parameters: object) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(parameters, lr=1e-9)  # type: ignore[arg-type]


workload = Workload(
    name="calibration kernels",
    model=_model,
    dataset=_dataset,
    loss=lambda model, batch: model(batch[0]).square(),
    optimizer=_optimizer,
    batch_size=None,
)
