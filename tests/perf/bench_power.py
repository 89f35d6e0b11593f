"""G2 simulated: how often inserted work is found by the rule that advises, in fresh launches."""

from __future__ import annotations

from perftool.measure.repeat import GENERATION_ROUNDS
from tests.perf.noise import DROPPED_STEPS, LAUNCH_SDS, STEPS_PER_BLOCK, at_end, looked_at, simulate, trace_ns
from tests.perf.table import Row, Table, share

TITLE = "G2, simulated: inserted work found"

TARGETS = {0.05: 0.95, 0.02: 0.80}  # effect to the share of sessions that must find it
SESSIONS = {1: 2000, 8: 300}  # by variants
ALPHA = 0.05


def run(quick: bool) -> Table:
    rows = []
    for variants, sessions in SESSIONS.items():
        for launch_sd in LAUNCH_SDS:
            for effect, target in TARGETS.items():
                trials = simulate(
                    trials=sessions // 20 if quick else sessions, variants=variants, launch_sd=launch_sd, effect=effect
                )
                ends = [at_end(looks) for looks in looked_at(trials, rule="detect", alpha=ALPHA)]
                found = sum(one.verdict == "worse" for _, compared in ends for one in compared)
                wrong = sum(one.verdict in ("better", "same") for _, compared in ends for one in compared)
                total = variants * len(ends)
                generations = sum(end for end, _ in ends) / len(ends)
                rows.append(
                    Row(
                        [
                            f"{100 * effect:.0f} %",
                            str(variants),
                            f"{100 * launch_sd:.1f} %",
                            share(found, total),
                            share(wrong, total),
                            f"{generations:.1f}",
                            f"{generations * _generation_s(variants):.0f}",
                        ],
                        reached=found >= target * total,
                    )
                )
    return Table(
        ["effect", "variants", "launch sd", "found", "called same or better", "generations", "stepping s"],
        rows,
        [
            "Target: 5 % found in 95 %, 2 % in 80 % of sessions, alpha 0.05 over all variants of a session together. "
            "Generations and seconds of stepping are means until the session stops; starting launches is not simulated."
        ],
    )


def _generation_s(variants: int) -> float:
    """Time of one generation's blocks at the mean step of the traces, dropped steps included."""
    return float(trace_ns().mean()) / 1e9 * (STEPS_PER_BLOCK + DROPPED_STEPS) * GENERATION_ROUNDS * (variants + 1)
