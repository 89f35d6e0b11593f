"""Measured tuning advice for PyTorch training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from perftool.training import Training
    from perftool.workload import Workload

__version__ = "0.1.0"


def apply(
    settings: Mapping[str, str | int | bool] | str | Path,
    workload: Workload | str,
    *,
    device: str = "auto",
    seed: int = 0,
    scenario_files: Sequence[str | Path] = (),
) -> Training:
    """The very training that perftool measures under these settings: `training.step(training.fetch())` is a step.

    settings: scenario name to value, or the path of a recommended.json; the workload's own settings are added.
    workload: a Workload, or what names one (`train.py:mine`).
    device: auto, cpu, cuda or cuda:N; a GPU becomes the current device.
    seed: of the initial weights and the order of the data.
    scenario_files: scenarios of your own, as for `--scenario`.

    Settings of the process (threads, precision, allocator) are in force from then on. Raises ValueError, with the
    remedy, for settings that cannot be had here or need another environment, and for a device that is not there.
    """
    # By name, so that neither torch nor the measuring is imported before somebody asks for it.
    training: Training = import_module("perftool.applied").apply(
        settings, workload, device=device, seed=seed, scenario_files=scenario_files
    )
    return training
