"""How fit a machine is for measuring now. Paired measurement survives noise, but it takes longer to be sure."""

from __future__ import annotations

from perftool import units
from perftool.records import Fitness, FitnessRating

# (noisy from, unfit from)
BUSY_CORES_PER_CORE = (0.05, 0.5)
LOAD_PER_CORE = (0.25, 1.0)
STEAL_SHARE = (0.01, 0.10)
PRESSURE_SHARE = (0.05, 0.30)
SAVING_GOVERNORS = ("powersave", "ondemand", "conservative", "schedutil")


def rate(fitness: Fitness) -> FitnessRating:
    """The rating, with what stands against a better one and what would help, the worst first."""
    unfit: list[str] = []
    noisy: list[str] = []

    def grade(value: float | None, limits: tuple[float, float], reason: str) -> None:
        if value is not None and value >= limits[0]:
            (unfit if value >= limits[1] else noisy).append(reason)

    if fitness.busy_processes:
        busy_cores = sum(process.cores for process in fitness.busy_processes)
        names = ", ".join(f"{process.name} (process {process.pid})" for process in fitness.busy_processes)
        grade(
            busy_cores / fitness.cores,
            BUSY_CORES_PER_CORE,
            f"other work takes {units.decimal(busy_cores)} of {units.counted(fitness.cores, 'core')}: "
            f"end {names}, or wait for it",
        )
    elif fitness.load_average_1min is not None:
        grade(
            fitness.load_average_1min / fitness.cores,
            LOAD_PER_CORE,
            f"other work ran within the last minute (load {units.decimal(fitness.load_average_1min)}): wait a minute",
        )
    grade(
        fitness.steal_share,
        STEAL_SHARE,
        f"the host gives {units.share(fitness.steal_share)} of this machine's core time to others (steal): "
        "use a dedicated one",
    )
    grade(
        fitness.pressure_share,
        PRESSURE_SHARE,
        f"processes wait for a core {units.share(fitness.pressure_share)} of the time: run fewer at a time",
    )
    if fitness.throttled_periods:
        unfit.append("a cgroup's CPU quota stops this process now and then: raise it, or give whole cores")
    if fitness.swapped_bytes:
        unfit.append(f"memory is being swapped ({units.size(fitness.swapped_bytes)} just now): free some memory")
    elif fitness.swap_used_bytes:
        noisy.append(f"{units.size(fitness.swap_used_bytes)} are swapped out: free some memory")
    if fitness.governor in SAVING_GOVERNORS:
        noisy.append(
            f"the clock follows the load (governor {fitness.governor}): "
            "set it with `cpupower frequency-set -g performance`"
        )
    return FitnessRating(rating="unfit" if unfit else "noisy" if noisy else "fit", reasons=[*unfit, *noisy])
