"""Side by side with loadtune, the nearest peer: whose advice is true, and who says the same twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median

from msgspec.structs import replace

from perftool.measure.survey import survey
from perftool.records import WorkloadFacts
from tests.perf import peer
from tests.perf.bench_medium import baseline_script
from tests.perf.table import Row, Table
from tests.perf.trials import beside, measured, plain_speedup

TITLE = "Side by side with loadtune"

REFERENCES = ("scenarios.reference:small",)
RUNS = 5
BUDGET_S = 30.0
NOTHING = "nothing"
COLUMNS = ("training", "what", f"loadtune {peer.VERSION}", "perftool")


@dataclass(frozen=True)
class Run:
    """One run of one tool, judged."""

    advice: str
    claim: float | None  # samples per second over the baseline's; None where nothing is advised
    true: float  # the same, of an independent plain loop; 1 where nothing is advised
    gain: float  # what the advice gains at the training's own batch size
    wall_s: float
    stress: bool


Judge = Callable[[str], float]
"""Steps per second of a plain training script over the plain baseline's."""


def run(quick: bool) -> Table:
    budget_s = BUDGET_S / 4 if quick else BUDGET_S
    rows: list[Row] = []
    told: list[str] = []
    try:
        with peer.installed() as command:
            for reference in REFERENCES[:1] if quick else REFERENCES:
                facts = survey(reference, "cpu", seed=0)[0].workload
                judge = _judge(facts, quick)
                theirs: list[Run] = []
                ours: list[Run] = []
                for number in range(2 if quick else RUNS):
                    stress = bool(number % 2)
                    for peers_turn in (False, True) if number // 2 % 2 else (True, False):
                        if peers_turn:
                            theirs.append(_loadtune(command, facts, judge, stress))
                        else:
                            ours.append(_perftool(reference, number, judge, stress, budget_s))
                rows += rows_of(reference, theirs, ours)
                told += [_told(reference, "loadtune", theirs), _told(reference, "perftool", ours)]
    except peer.UnavailableError:
        return Table(COLUMNS, [Row(["all", "skipped: loadtune cannot be installed", "-", "-"])])
    return Table(
        COLUMNS,
        rows,
        [
            f"`loadtune tune` with its defaults and `perftool tune --budget {budget_s:.0f}`, in alternation, every "
            "second run of both beside a process that comes and goes. The truth: plain PyTorch scripts with and "
            "without the advice, in processes of their own, taking turns in drawn order on the quiet machine. Reached: "
            "perftool does at least as well.",
            *told,
        ],
    )


def _judge(facts: WorkloadFacts, quick: bool) -> Judge:
    baseline = baseline_script(facts)

    @cache
    def judge(changed: str) -> float:
        # Long blocks: what loader workers held ready when a block began must not decide it.
        return plain_speedup(
            baseline, changed, launches=1 if quick else 4, rounds=5 if quick else 20, block_s=0.25
        ).ratio

    return judge


def _loadtune(command: Path, facts: WorkloadFacts, judge: Judge, stress: bool) -> Run:
    batch_size = facts.batch_size
    with beside(stress):
        advice, wall_s = peer.tune(command, facts.reference)
    if advice is None:
        return Run(NOTHING, None, 1.0, 1.0, wall_s, stress)
    size = peer.advised_batch_size(advice, batch_size)
    gain = judge(peer.advised_script(advice, facts))
    true = gain
    if size != batch_size and size is not None and batch_size is not None:
        true = judge(peer.advised_script(advice, replace(facts, batch_size=size))) * size / batch_size
    return Run(advice.label, advice.claim, true, gain, wall_s, stress)


def _perftool(reference: str, seed: int, judge: Judge, stress: bool, budget_s: float) -> Run:
    with beside(stress):
        tuned = measured("tune", reference, "--device", "cpu", "--budget", str(budget_s), "--seed", str(seed))
    advised = tuned.summary.recommendation
    if advised is None:
        return Run(NOTHING, None, 1.0, 1.0, tuned.wall_s, stress)
    label = ", ".join(f"{name}={value}" for name, value in advised.settings.items())
    gain = judge(tuned.script)
    return Run(label, advised.speedup.ratio, gain, gain, tuned.wall_s, stress)


# ---------------------------------------------------------------------------------------------------------- the table


def rows_of(reference: str, theirs: Sequence[Run], ours: Sequence[Run]) -> list[Row]:
    """The four questions, answered for both tools."""
    name = reference.rpartition(":")[2]
    errors = [_error_points(runs) for runs in (theirs, ours)]
    gains = [mean(one.gain for one in runs) for runs in (theirs, ours)]
    spreads = [_spread(runs) for runs in (theirs, ours)]
    kinds = [len({one.advice for one in runs}) for runs in (theirs, ours)]
    right = [sum(one.true >= 1 for one in runs) for runs in (theirs, ours)]
    return [
        Row(
            [name, "truth of the claim: mean absolute error", *map(_points, errors)],
            reached=None if None in errors else (errors[1] or 0.0) <= (errors[0] or 0.0),
        ),
        Row(
            [name, "gain reached: mean true speed-up", *(f"{gain:.3f}" for gain in gains)],
            reached=gains[1] >= gains[0],
        ),
        Row(
            [
                name,
                "repeatability: different advices; largest claim over smallest",
                *(
                    f"{kind} in {len(runs)} runs; {'-' if wide is None else f'{wide:.2f}'}"
                    for kind, wide, runs in zip(kinds, spreads, (theirs, ours), strict=True)
                ),
            ],
            reached=None if None in spreads else (spreads[1] or 1.0) <= (spreads[0] or 1.0),
        ),
        Row(
            [
                name,
                "runs whose advice is at least no loss; wall time of a run",
                *(
                    f"{count} of {len(runs)}; {median(one.wall_s for one in runs):.0f} s"
                    for count, runs in zip(right, (theirs, ours), strict=True)
                ),
            ],
            reached=right[1] * len(theirs) >= right[0] * len(ours),
        ),
    ]


def _error_points(runs: Sequence[Run]) -> float | None:
    """Mean of |claim - truth| in hundredths of the baseline; None where nothing was claimed."""
    errors = [100 * abs(one.claim - one.true) for one in runs if one.claim is not None]
    return mean(errors) if errors else None


def _spread(runs: Sequence[Run]) -> float | None:
    """Largest claim over the smallest, where no advice is a claim of 1; None where nothing was ever claimed."""
    claims = [one.claim or 1.0 for one in runs]
    return max(claims) / min(claims) if any(one.claim is not None for one in runs) else None


def _points(error: float | None) -> str:
    return "claims nothing" if error is None else f"{error:.1f} points"


def _told(reference: str, tool: str, runs: Sequence[Run]) -> str:
    """Every run of a tool in a sentence."""
    each = [
        f"{one.advice}"
        + (f" at {one.claim:.2f}, true {one.true:.3f}" if one.claim is not None else "")
        + (f", {one.gain:.3f} at the same batch size" if one.gain != one.true else "")
        + (" (beside a neighbour)" if one.stress else "")
        for one in runs
    ]
    return f"{reference.rpartition(':')[2]}, {tool} advised: {'; '.join(each)}."
