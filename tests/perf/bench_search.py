"""G5, simulated: the real search over 96 combinations whose truth is known, on recorded noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, product
from math import exp, log1p
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.analysis.search import Offer
from perftool.measure import messages
from perftool.measure.switching import Switching
from perftool.records import Block, Session, Settings
from perftool.search import tune
from tests.measure.fakes import Script, ScriptedLaunch, make_lab, make_session
from tests.perf.noise import STEPS_PER_BLOCK, trace_ns
from tests.perf.table import Row, Table, share

TITLE = "G5, simulated: the search over 96 combinations of known truth"

TRIALS = 100
BUDGETS_S = (60.0, 90.0, 180.0)
LAUNCH_SD = 0.008
STEP_S = 0.02
START_S = 1.7  # wall time of a launch, two at a time
SWITCH_S = 0.5  # of a process that is there
REGRET, WITHIN_POINTS = 0.01, 0.5

VALUES = {
    "amp": ["bf16"],
    "batch_gather": ["on"],
    "malloc_retention": ["on"],
    "optimizer_kernel": ["foreach", "fused"],
    "threads": ["1"],
    "torch_compile": ["default"],
}
OFFER = Offer(values=VALUES, defaults=dict.fromkeys(VALUES, "default"), slow=frozenset({"torch_compile"}))
SWITCHING = Switching(
    live=frozenset({"amp", "batch_gather", "optimizer_kernel", "threads"}), single=frozenset({"torch_compile"})
)
ALL: list[Settings] = [
    {name: value for name, value in zip(VALUES, one, strict=True) if value is not None}
    for one in product(*([None, *values] for values in VALUES.values()))
]


def world(drawn: random.Random) -> Callable[[Settings], float]:
    """Log effect of settings: single ones of up to a third, and pairs that mask or lift each other by some per cent."""
    alone = {
        ("amp", "bf16"): drawn.choice([-0.5, -0.2, 0.15]),
        ("batch_gather", "on"): -drawn.uniform(0.0, 0.1),
        ("malloc_retention", "on"): -drawn.uniform(0.0, 0.2),
        ("optimizer_kernel", "foreach"): drawn.uniform(-0.1, 0.1),
        ("optimizer_kernel", "fused"): -drawn.uniform(0.05, 0.3),
        ("threads", "1"): drawn.uniform(-0.1, 0.5),
        ("torch_compile", "default"): drawn.uniform(-0.1, 0.1),
    }
    pairs = {pair: drawn.gauss(0.0, 0.03) for pair in combinations(alone, 2)}

    def effect(settings: Settings) -> float:
        return sum(alone[one] for one in settings.items()) + sum(
            pairs[pair] for pair in combinations([one for one in alone if one in settings.items()], 2)
        )

    return effect


class NoisyScript(Script):
    """Launches with an effect of their own, on a machine as disturbed as the recorded one."""

    def __init__(self, effect: Callable[[Settings], float], drawn: random.Random) -> None:
        super().__init__(step_s=lambda settings: STEP_S * exp(effect(settings)), start_s=START_S, switch_s=SWITCH_S)
        self.drawn = drawn
        self.elapsed_ns = np.concatenate([[0.0], np.cumsum(np.tile(trace_ns(), 2))])
        self.usual_ns = STEPS_PER_BLOCK * float(np.median(trace_ns()))
        self.at = drawn.randrange(len(trace_ns()))

    def start(self, spec: messages.LaunchSpec, environment: dict[str, str]) -> ScriptedLaunch:
        self.started.append(spec.settings)
        self.alive.add(spec.launch)
        return NoisyLaunch(self, spec)

    def weather(self) -> float:
        """Of the next block, in units of the usual one."""
        wall_ns = self.elapsed_ns[self.at + STEPS_PER_BLOCK] - self.elapsed_ns[self.at]
        self.at = (self.at + STEPS_PER_BLOCK + 1) % len(trace_ns())
        return float(wall_ns) / self.usual_ns


class NoisyLaunch(ScriptedLaunch):
    """Its blocks take as long as scripted, times its own effect, times the weather."""

    def __init__(self, script: NoisyScript, spec: messages.LaunchSpec) -> None:
        super().__init__(script, spec)
        self.noisy = script
        self.own = script.drawn.gauss(0.0, LAUNCH_SD)

    def answer(self, request: messages.Ask[Any]) -> Any:
        reply = super().answer(request)
        if not isinstance(reply, Block):
            return reply
        factor = exp(self.own) * self.noisy.weather()
        return replace(
            reply, wall_ns=round(reply.wall_ns * factor), step_ns=[round(one * factor) for one in reply.step_ns]
        )


class Outcome(NamedTuple):
    """Of one search. regret: of the advice. points: the printed gain less the true one; None without advice. more:
    settings advised beyond those of the best that earn their price. padded: those that truly bring less than nothing.
    """

    regret: float
    points: float | None
    more: int
    padded: int
    wall_s: float


def trial(seed: int, budget_s: float) -> Outcome:
    """A search in a world of its own."""
    drawn = random.Random(seed)
    effect = world(drawn)
    session: Session = replace(make_session(budget_s=budget_s), command="tune", seed=seed)
    script = NoisyScript(effect, drawn)
    lab, _ = make_lab(script, session)
    tune(lab, OFFER, SWITCHING)
    advice = conclude(lab.session).recommendation
    best = min(map(effect, ALL))
    price = log1p(lab.session.goal.price)
    wanted = min(ALL, key=lambda one: effect(one) + price * len(one))
    if advice is None:
        return Outcome(1 - exp(best), None, -len(wanted), 0, script.now_s)
    given = advice.settings
    true = exp(-effect(given))
    padded = sum(effect({name: value for name, value in given.items() if name != one}) < effect(given) for one in given)
    points = 100 * (advice.speedup.ratio - true)
    return Outcome(1 - true * exp(best), points, len(given) - len(wanted), padded, script.now_s)


def run(quick: bool) -> Table:
    rows = []
    for budget_s in BUDGETS_S[:1] if quick else BUDGETS_S:
        trials = [trial(seed, budget_s) for seed in range(4 if quick else TRIALS)]
        regrets = np.array([one.regret for one in trials])
        off = np.array([one.points for one in trials if one.points is not None])
        more = np.array([one.more for one in trials])
        padded = sum(one.padded for one in trials)
        near = int((regrets <= REGRET).sum())
        rows.append(
            Row(
                [
                    f"{budget_s:.0f} s",
                    share(near, len(trials)),
                    f"{100 * regrets.mean():.2f} %",
                    f"{100 * np.quantile(regrets, 0.95):.1f} %",
                    f"{off.mean():+.2f}",
                    f"{off.std():.1f}",
                    share(len(trials) - len(off), len(trials)),
                    f"{np.median(more):+.0f} ({more.min():+d} to {more.max():+d})",
                    f"{padded / len(trials):.2f}",
                    f"{np.mean([one.wall_s for one in trials]):.0f} s",
                ],
                reached=near >= 0.95 * len(trials) and abs(off.mean()) <= WITHIN_POINTS and abs(np.median(more)) <= 1,
            )
        )
    return Table(
        [
            "budget",
            "regret at most 1 %",
            "mean regret",
            "95 % quantile",
            "printed less true gain, mean points",
            "sd, points",
            "no advice",
            "settings beyond the best's, median",
            "settings that harm, a run",
            "wall time, scripted",
        ],
        rows,
        [
            f"Target: regret of at most 1 % in 95 % of runs, printed gains off by at most {WITHIN_POINTS} points on "
            "average, and as many settings as the best has where each costs 1 %, give or take one. "
            f"{len(ALL)} combinations; each trial has effects of its own, pairs of settings that interact by "
            f"3 % (standard deviation), launches that differ by {100 * LAUNCH_SD:.1f} %, and recorded noise."
        ],
    )
