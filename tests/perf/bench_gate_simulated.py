"""G6 simulated: the gate's two stages on recorded noise, for an unchanged head and for known slowdowns."""

from __future__ import annotations

import numpy as np

from perftool.analysis.gate import ALPHAS, GATES, TIMES_THE_PAIRS, stage_comparison, verdict
from perftool.analysis.verdict import LOOKS
from perftool.measure.repeat import GENERATION_ROUNDS
from perftool.records import CONFIRM, MEASURE, GateVerdict
from tests.perf.noise import LAUNCH_SDS, Trials, simulate
from tests.perf.table import Row, Table, share

TITLE = "G6, simulated: the gate on an unchanged head and on known slowdowns"

CHECKS = 2000
EFFECTS = (0.0, 0.05, 0.02)
FLAKES_MOST = 1 / 500
FOUND_LEAST = 0.95


def run(quick: bool) -> Table:
    rows = []
    for launch_sd in LAUNCH_SDS:
        for effect in EFFECTS:
            told = _checked(CHECKS // 20 if quick else CHECKS, launch_sd, effect)
            failed = sum(second == "regression" for _, _, second in told)
            first = sum(one == "regression" for _, one, _ in told)
            open_ = sum(second == "undecided" for _, _, second in told)
            reached = {0.0: failed <= FLAKES_MOST * len(told), 0.05: failed >= FOUND_LEAST * len(told)}.get(effect)
            rows.append(
                Row(
                    [
                        f"{effect:.0%} slower" if effect else "unchanged",
                        f"{launch_sd:.1%}",
                        share(failed, len(told)),
                        share(first, len(told)),
                        share(open_, len(told)),
                        f"{np.mean([generations for generations, _, _ in told]):.1f}",
                    ],
                    reached=reached,
                )
            )
    return Table(
        ["head", "launch sd", "regression, confirmed", "regression, first look", "undecided", "generations looked at"],
        rows,
        [
            "Target: at most 1 flake in 500, 5 % found in 95 %; 2 % is stated. Throughput alone, with its margin of "
            f"{GATES['throughput'].margin:.0%}, {ALPHAS[MEASURE]:.0%} at the first look and {ALPHAS[CONFIRM]:.0%} "
            "after; recorded noise, a launch effect drawn afresh for every launch, "
            f"{GENERATION_ROUNDS} rounds a generation, confirmation with {TIMES_THE_PAIRS} times the pairs."
        ],
    )


def _checked(checks: int, launch_sd: float, effect: float) -> list[tuple[int, GateVerdict, GateVerdict]]:
    """Generations of the first look, what it says, and what the check says."""
    first, *fresh = (
        simulate(trials=checks, variants=1, launch_sd=launch_sd, effect=effect, seed=seed)
        for seed in range(1 + TIMES_THE_PAIRS)
    )
    again = Trials(
        np.concatenate([one.d for one in fresh], axis=2), np.concatenate([one.half_widths for one in fresh], axis=2)
    )
    told = []
    for trial in range(checks):
        for generations in LOOKS:
            one = _verdict(first, trial, generations, MEASURE)
            if one != "undecided":
                break
        other = (
            _verdict(again, trial, TIMES_THE_PAIRS * generations, CONFIRM)
            if one in ("regression", "improvement")
            else one
        )
        told.append((generations, one, other if other == one or other != "regression" else "undecided"))
    return told


def _verdict(trials: Trials, trial: int, generations: int, stage: str) -> GateVerdict:
    [effect] = trials.effects(trial, generations)
    return verdict("throughput", stage_comparison("throughput", effect, GENERATION_ROUNDS * generations, stage))
