"""G5, live: whole searches over a space that hides its levers behind each other, beside other work or not, and a long
comparison in the same state that says what was there to be had."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from statistics import median

from perftool.records import Estimate, Settings
from tests.perf.table import Row, Table, share
from tests.perf.trials import measured

MASKED = f"{Path(__file__).with_name('masked.py')}:workload"
RUNS, BUDGET_S, WALL_LIMIT_S = 10, 60.0, 180.0
JUDGE_BUDGET_S = 240.0
GRID = {"dataloader_workers": ["2"], "optimizer_kernel": ["fused"], "threads": ["1"]}

OTHERS = {
    "quiet": None,
    # Half of one core's time, in turns that a scheduler does not even out.
    "core": "import os, time\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nBUSY = IDLE = lambda: 0.05\n",
    "bursts": "import random, time\nBUSY = IDLE = lambda: random.uniform(0.1, 2.0)\n",
}
"""State of the machine to what its other process begins with."""
SPIN = """
while True:
    end = time.perf_counter() + BUSY()
    while time.perf_counter() < end: sum(range(1000))
    time.sleep(IDLE())
"""


@contextmanager
def machine(state: str) -> Iterator[None]:
    """In one of the states."""
    code = OTHERS[state]
    if code is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", code + SPIN]) as other:
        try:
            yield
        finally:
            other.kill()


@dataclass(frozen=True)
class Found:
    """By one search. idle: settings whose leave-one-out interval lies wholly below the price."""

    settings: Settings
    told: Estimate | None
    idle: int
    wall_s: float


def table(state: str, quick: bool, *, regret: float, share_wanted: float) -> Table:
    """regret: that so large a share of the runs may have at most."""
    with machine(state):
        runs = [_found(seed) for seed in range(2 if quick else RUNS)]
        truth = _truth([one.settings for one in runs], JUDGE_BUDGET_S / 8 if quick else JUDGE_BUDGET_S)
    best = max(truth.values(), key=lambda one: one.ratio)
    fewest = min(len(key) for key, one in truth.items() if one.high >= best.ratio)
    unjudged = Estimate(ratio=1.0, low=1.0, high=1.0)  # where the judge lost it
    found = [truth.get(_key(one.settings), unjudged) for one in runs]
    regrets = [1 - one.ratio / best.ratio for one in found]
    allowed = ceil(share_wanted * len(runs))
    sizes = [len(one.settings) for one in runs]
    rows = [
        Row(
            [
                _text(one.settings) or "nothing",
                "-" if one.told is None else _ratio(one.told),
                _ratio(true),
                f"{100 * lost:.1f} %",
                str(one.idle),
                f"{one.wall_s:.0f} s",
            ],
            reached=lost <= regret and not one.idle and one.wall_s <= WALL_LIMIT_S,
        )
        for one, true, lost in zip(runs, found, regrets, strict=True)
    ]
    near, judged = sum(lost <= regret for lost in regrets), sorted(truth, key=lambda key: -truth[key].ratio)
    rows.append(
        Row(
            [
                f"all: {median(sizes):.0f} settings, median; the fewest of the best {fewest}",
                f"{sum(one.told is None for one in runs)} without advice",
                _ratio(best),
                f"at most {100 * regret:.0f} % in {share(near, len(runs))}",
                str(sum(one.idle for one in runs)),
                f"{median(one.wall_s for one in runs):.0f} s",
            ],
            reached=near >= allowed
            and abs(median(sizes) - fewest) <= 1
            and max(one.wall_s for one in runs) <= WALL_LIMIT_S,
        )
    )
    return Table(
        ["recommended", "told", "true", "regret", "settings below the price", "wall time"],
        rows,
        [
            f"Target: a regret of at most {100 * regret:.0f} % in {100 * share_wanted:.0f} % of runs of `tune --budget "
            f"{BUDGET_S:.0f}`, within {WALL_LIMIT_S:.0f} s, no setting whose leave-one-out interval lies wholly below "
            "its price, and as many settings as the best, give or take one. This processor may lack bf16 units, so "
            "the space masks itself by construction: loader and computation take about as long as each other and run "
            "side by side, so neither one's lever shows alone. The truth: one `perftool compare` in the same state, "
            f"{JUDGE_BUDGET_S:.0f} s of blocks over what was recommended and the grid of the levers; its own "
            "intervals say how finely it can tell a regret.",
            "Judged: " + "; ".join(f"{_text(dict(key)) or 'baseline'} {_ratio(truth[key])}" for key in judged) + ".",
        ],
    )


def _found(seed: int) -> Found:
    tuned = measured("tune", MASKED, "--budget", str(BUDGET_S), "--seed", str(seed))
    advice = tuned.summary.recommendation
    if advice is None:
        found = Found({}, None, 0, tuned.wall_s)
    else:
        price = tuned.session.goal.price
        idle = sum(one.together is not None and one.together.high < 1 + price for one in advice.per_setting)
        found = Found(advice.settings, advice.speedup, idle, tuned.wall_s)
    status = tuned.summary.provisional or tuned.summary.so_far if advice is None else "recommended"
    print(f"{time.strftime('%H:%M:%S')} seed {seed}: {found} {status}", file=sys.stderr, flush=True)
    return found


def _truth(chosen: Sequence[Settings], budget_s: float) -> dict[tuple[tuple[str, str], ...], Estimate]:
    """Samples per second of what was chosen, and of the grid, over the baseline's."""
    grid = [
        {name: value for name, value in zip(GRID, one, strict=True) if value is not None}
        for one in product(*([None, *values] for values in GRID.values()))
    ]
    wanted = {_key(one): one for one in [*grid, *chosen] if one}
    compared = measured("compare", MASKED, *map(_text, wanted.values()), "--budget", str(budget_s))
    found = {_key({}): Estimate(ratio=1.0, low=1.0, high=1.0)}
    for one in compared.summary.variants:
        seen = one.versus_baseline.get("throughput")
        if seen is not None and seen.low is not None and seen.high is not None:
            found[_key(one.settings)] = Estimate(ratio=seen.ratio, low=seen.low, high=seen.high)
    return found


def _key(settings: Settings) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(settings.items()))


def _text(settings: Settings) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(settings.items()))


def _ratio(one: Estimate) -> str:
    return f"{one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})"
