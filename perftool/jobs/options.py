"""What all jobs are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perftool.target import Target
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from perftool.records import Settings

RESULTS = Path("results")
BUDGET_S = 90.0
CHECK_BUDGET_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, on what, for how long, and where it is written.

    device: auto, cpu, cuda or cuda:N. budget_s: of blocks. out: None keeps nothing on disk.
    settings: that move the baseline. arguments: the command line, to run it again.
    """

    target: Target = DEFAULT_WORKLOAD
    device: str = "auto"
    budget_s: float = BUDGET_S
    out: Path | None = RESULTS
    seed: int = 0
    settings: Settings = field(default_factory=dict)
    scenario_files: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()
