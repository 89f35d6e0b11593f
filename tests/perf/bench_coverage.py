"""G4: whether 95 % intervals cover a known injected effect, and whether they are wider than they need be."""

from __future__ import annotations

import numpy as np
from scipy import stats

from perftool.analysis.stats import interval
from perftool.analysis.verdict import LOOKS
from tests.perf.noise import LAUNCH_SDS, simulate
from tests.perf.table import Row, Table, share

TITLE = "G4, simulated: coverage and width of 95 % intervals"

EFFECT = 0.02
ALPHA = 0.05
COVERED = (0.93, 0.99)
SESSIONS = {1: 4000, 8: 500}  # by variants


def run(quick: bool) -> Table:
    rows = []
    for variants, sessions in SESSIONS.items():
        for launch_sd in LAUNCH_SDS:
            trials = simulate(
                trials=sessions // 20 if quick else sessions, variants=variants, launch_sd=launch_sd, effect=EFFECT
            )
            # Whoever knew the variance of a launch's median would need this many standard errors and no more.
            deviations = trials.d - np.log1p(EFFECT)
            oracle = 2 * float(stats.norm.ppf(1 - ALPHA / 2)) * float(np.sqrt(np.mean(deviations**2)))
            for generations in LOOKS:
                ends = np.array(
                    [
                        interval(effect, ALPHA)
                        for trial in range(len(trials.d))
                        for effect in trials.effects(trial, generations)
                    ]
                )
                covered = int(np.sum((ends[:, 0] <= np.log1p(EFFECT)) & (np.log1p(EFFECT) <= ends[:, 1])))
                widths = ends[:, 1] - ends[:, 0]
                rows.append(
                    Row(
                        [
                            str(variants),
                            f"{100 * launch_sd:.1f} %",
                            str(generations),
                            share(covered, len(ends)),
                            f"{100 * np.median(widths) / 2:.2f} %",
                            f"{np.median(widths) / (oracle / generations**0.5):.2f}",
                            f"{widths.mean() / (oracle / generations**0.5):.2f}",
                        ],
                        reached=COVERED[0] <= covered / len(ends) <= COVERED[1],
                    )
                )
    return Table(
        [
            "variants",
            "launch sd",
            "generations",
            "covered",
            "half-width",
            "median width / oracle",
            "mean width / oracle",
        ],
        rows,
        [
            f"Target: 93 to 99 % cover the injected {100 * EFFECT:.0f} %. Each variant alone at the full alpha. The "
            "oracle knows the true variance of a launch's median, recorded noise and launch effect together."
        ],
    )
