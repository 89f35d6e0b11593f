"""G3: looking early, and again and again, does not raise the false alarms."""

from __future__ import annotations

from math import log

import numpy as np

from perftool.analysis.stats import sign_test_log_e
from perftool.analysis.verdict import LOOKS
from perftool.records import Comparison
from tests.perf.noise import LAUNCH_SDS, Floats, log_blocks, looked_at, simulate
from tests.perf.table import Row, Table, share

TITLE = "G3: false alarms at every look"

ALPHAS = (0.05, 0.01)
SESSIONS = {1: 4000, 8: 400}  # by variants
RACES = 2000
RACE_PAIRS = 2000
RACE_EFFECT = 0.02  # to say what the race costs


def run(quick: bool) -> Table:
    scale = 20 if quick else 1
    return Table(
        ["what looks", "alpha", "programs", "false alarms by each look", "ever", "pairs to see 2 %"],
        [*_rule(scale), *_race(scale)],
        [
            "Target: ever at most alpha of sessions. The rule: sessions in which any variant's interval has left 0, no "
            "margin asked, at any look; looks after 4, 6 and 8 generations. The race: sign test at every pair to 2,000 "
            "within one pair of launches; the pairs to see 2 % are mean and 90 % quantile."
        ],
    )


def _rule(scale: int) -> list[Row]:
    rows = []
    for variants, sessions in SESSIONS.items():
        for launch_sd in LAUNCH_SDS:
            trials = simulate(trials=sessions // scale, variants=variants, launch_sd=launch_sd)
            for alpha in ALPHAS:
                left = np.array(
                    [
                        [any(_left_zero(one) for one in compared) for compared in looks]
                        for looks in looked_at(trials, rule="detect", alpha=alpha)
                    ]
                )
                by_look = np.maximum.accumulate(left, axis=1).mean(axis=0)
                rows.append(
                    Row(
                        [
                            "the rule",
                            str(alpha),
                            f"baseline + {variants}, launch sd {100 * launch_sd:.1f} %",
                            ", ".join(f"{look}: {100 * part:.1f} %" for look, part in zip(LOOKS, by_look, strict=True)),
                            share(int(left.any(axis=1).sum()), len(left)),
                            "-",
                        ],
                        reached=bool(by_look[-1] <= alpha),
                    )
                )
    return rows


def _left_zero(one: Comparison) -> bool:
    return one.low is not None and one.high is not None and (one.low > 1 or one.high < 1)


def _race(scale: int) -> list[Row]:
    generator = np.random.default_rng(3)
    races = RACES // scale
    # In parts, for the memory: a race has as many blocks as the trace has steps.
    blocks = np.concatenate([log_blocks(generator, 100, 2, RACE_PAIRS) for _ in range(races // 100)])
    d = blocks[..., 1] - blocks[..., 0]
    rows = []
    for alpha in ALPHAS:
        rejected = _first_rejection(d, alpha)
        seen = _first_rejection(d + np.log1p(RACE_EFFECT), alpha)
        looks = [(pairs, float(np.mean(rejected <= pairs))) for pairs in (20, 100, 500)]
        false = int(np.sum(rejected <= RACE_PAIRS))
        rows.append(
            Row(
                [
                    "the race",
                    str(alpha),
                    "2, in the same launches",
                    ", ".join(f"{pairs}: {100 * part:.1f} %" for pairs, part in looks),
                    share(false, races),
                    f"{seen.mean():.0f}, {np.quantile(seen, 0.9):.0f}",
                ],
                reached=false <= alpha * races,
            )
        )
    return rows


def _first_rejection(d: Floats, alpha: float) -> Floats:
    """Pairs after which the sign test first rejects, by race; one more than there are pairs where it never does."""
    pairs = np.arange(1, d.shape[1] + 1)
    below = np.cumsum(d < 0, axis=1)
    extreme = np.maximum(below, pairs - below) >= _boundary(d.shape[1], alpha)
    first: Floats = np.where(extreme.any(axis=1), extreme.argmax(axis=1) + 1, d.shape[1] + 1).astype(float)
    return first


def _boundary(pairs: int, alpha: float) -> Floats:
    """Signs of one kind with which the test rejects after 1, 2, ... pairs: found once, not for each race again."""
    needed, boundary = 1, []
    for count in range(1, pairs + 1):
        while needed <= count and (2 * needed < count or sign_test_log_e(needed, count) < log(1 / alpha)):
            needed += 1
        boundary.append(needed)
    return np.array(boundary, dtype=float)
