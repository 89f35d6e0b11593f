"""The words that scenarios and probes share: findings, causes and phases by name, settings, and what a proof says.

A leaf of the standard library alone: what runs inside a user's own script imports it in place of the records.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, Literal

Settings = dict[str, str]
"""Scenario name to value: all that differs from the workload's own defaults."""

GARBAGE, LOADER, WORKER_START = "garbage collection", "waiting for data", "starting loader workers"
FAULTS, RUN_QUEUE, STEAL = "page faults", "waiting for a core", "time taken by the host"
SLOWER_CORE, COMPILATION, RETRY, UNKNOWN = "slower core", "compilation", "allocator retry", "unknown"
CAUSES = (GARBAGE, LOADER, WORKER_START, FAULTS, RUN_QUEUE, STEAL, SLOWER_CORE, COMPILATION, RETRY)
"""What may make a step slow. The last is counted, the others are measured in time."""

WAIT, COPY, FORWARD, BACKWARD, OPTIMIZER = "data wait", "copy to device", "forward", "backward", "optimizer"
WHOLE, REST = "whole step", "the rest"
"""Phases of a step; `WHOLE` where forward, backward and optimizer are one piece."""

ROW_BY_ROW = "row-by-row loading"
DATA_WAIT = "waiting for data"
WORKER_RESTARTS = "loader workers start anew"
SLOW_COPY = "copy to the device"
SLOW_OPTIMIZER = "slow optimizer"
FAULT_CHURN = "page-fault churn"
NO_CORE = "waiting for a core"
STOLEN = "the host takes time"
SLOWED = "slower core"
COLLECTIONS = "garbage collection"
RECOMPILING = "recompilation"
RETRIES = "allocator retries"
LAUNCH_BOUND = "launch-bound"
FULL_PRECISION = "full-precision arithmetic"
DOUBLE_PRECISION = "float64 arithmetic"
SLOW_TYPE = "slow data type"
RAGGED_BATCH = "a last batch of another shape"
DENORMALS = "denormal numbers"
THROTTLED = "throttled clock"
LEAK = "memory leak"
HOST_SYNCS = "the host waits for the device"
FRAGMENTATION = "fragmented device memory"
"""Findings. A scenario names those that it cures."""

SAVING_GOVERNORS = ("powersave", "ondemand", "conservative", "schedutil")
"""Governors of a clock that follows the load."""

POWER_LIMIT, HARDWARE_SLOWDOWN, DEVICE_HEAT, POWER_BRAKE = "power limit", "hardware slowdown", "heat", "power brake"
"""What may hold the clock of a device down."""


@dataclass(frozen=True, kw_only=True)
class Engaged:
    """Whether a variant's settings took effect, and how that was seen."""

    ok: bool
    evidence: str


BARE_STEP: Final = "bare step"
STEP: Final = "step"
FETCH: Final = "fetch"
Wanted = Literal["bare step", "step", "fetch"]
"""What a proof wants to see happen next: a whole step, one without what the plan wraps around steps, or the next batch
being fetched, which the step after it takes."""

Proving = Generator[Wanted, Any, Engaged]
"""A proof on its way: it yields what is to happen next, and is resumed after it, with the batch that was fetched."""
