"""How fit a machine is for measuring now. Paired measurement survives noise, but it takes longer to be sure."""

from __future__ import annotations

from perftool.records import Fitness, FitnessRating

NOISY_LOAD_PER_CORE = 0.25
UNFIT_LOAD_PER_CORE = 1.0
NOISY_STEAL = 0.01
UNFIT_STEAL = 0.10
NOISY_PRESSURE = 0.05
UNFIT_PRESSURE = 0.30


def rate(fitness: Fitness) -> FitnessRating:
    """The rating, with what stands against a better one and what would help."""
    unfit: list[str] = []
    noisy: list[str] = []

    def grade(value: float | None, noisy_from: float, unfit_from: float, text: str) -> None:
        if value is not None and value >= noisy_from:
            (unfit if value >= unfit_from else noisy).append(text)

    load = None if fitness.load_average_1min is None else fitness.load_average_1min / fitness.cores
    busiest = ", ".join(fitness.busy_processes) or "nothing in particular just now"
    grade(load, NOISY_LOAD_PER_CORE, UNFIT_LOAD_PER_CORE, f"other work runs here ({busiest}): end it, or wait for it")
    grade(
        fitness.steal_share,
        NOISY_STEAL,
        UNFIT_STEAL,
        "the host gives this machine's cores to others (steal): use a dedicated one",
    )
    grade(fitness.pressure_share, NOISY_PRESSURE, UNFIT_PRESSURE, "processes wait for a core: run fewer at a time")
    if fitness.throttled_periods:
        unfit.append("a cgroup quota stops this process now and then: raise it, or give whole cores")
    if fitness.governor in ("powersave", "ondemand", "conservative"):
        noisy.append(f"the clock follows the load (governor {fitness.governor}): set it to performance")
    if fitness.swap_used_bytes:
        noisy.append("swap is in use: free some memory")
    return FitnessRating(rating="unfit" if unfit else "noisy" if noisy else "fit", reasons=[*unfit, *noisy])
