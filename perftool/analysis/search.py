"""What to try next, and what is best so far: decided from what a session has measured, and from nothing else.

Because nothing is remembered beside the session, a search that was interrupted goes on where it stopped. Pure: no
clock, no process; `tune.py` does what is decided here as far as time allows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import exp, log, log1p, prod
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.confirmation import leave_outs
from perftool.analysis.pairs import launches_of, pair_effects
from perftool.analysis.parity import log_samples_ratio, settings_that
from perftool.analysis.stats import LAUNCH_SD_UNPINNED, sign_test_log_e
from perftool.analysis.surrogate import Observation, Posterior, key_of, likely_launch_sd, posterior
from perftool.records import ALONE, PARITY, PATCHED, Estimate, Goal, Session, Settings

WORTHWHILE = 0.01  # smaller gains are not advised
GROSS = log(2.0)  # what loses this much in each of its first rounds leaves at once, and is not tried in company
GROSS_ROUNDS = 3
HALVE_AFTER_ROUNDS = (20, 40)
RACE_ALPHA = 0.05
STARTS_DIFFER = 1.0  # of a start-up, between launches of one program that start beside others
LIKELY = 0.5  # to keep the limits
EXPECTED_BEST = 2  # combinations that each pass has because they are expected to be best
BEYOND = 10.0  # a score that stands for what breaks a limit
REGRET = 0.003  # the search may end when it expects to gain less
MOST_COMBINATIONS = 20_000
MEMORY_SD = 0.005  # between launches of one program

METRIC_OF = {
    "throughput": "throughput",
    "time-to-loss": "throughput",
    "step-time": "step_mean",
    "jitter": "jitter",
    "memory": "peak_memory",
}
"""Objective to the metric by which combinations are compared."""

Change = tuple[str, str]
"""Scenario and value."""


@dataclass(frozen=True)
class Offer:
    """What may be tried.

    values: scenario to its values here without the default. defaults: of every scenario. gains: the throughput ratio
    that a scenario typically brings. clash: why a combination is impossible, None where it is not. slow: scenarios that
    start slowly, since something is compiled or captured.
    """

    values: Mapping[str, Sequence[str]]
    defaults: Mapping[str, str]
    gains: Mapping[str, float] = field(default_factory=dict)
    clash: Callable[[Settings], str | None] = lambda _: None
    slow: frozenset[str] = frozenset()

    @property
    def is_slow_first(self) -> bool:
        """Whether something that starts slowly typically brings more than all else."""
        gains = {name: self.gains.get(name, 1.0) for name, values in self.values.items() if values}
        slow, others = ([gain for name, gain in gains.items() if (name in self.slow) is of] for of in (True, False))
        return max(slow, default=1.0) > max(others, default=1.0)

    def changes(self) -> list[Change]:
        """Every single change that is possible, what typically brings most first, and last what starts slowly."""
        changes = [(name, value) for name, values in self.values.items() for value in values]
        possible = [change for change in changes if self.clash(dict([change])) is None]
        return sorted(possible, key=lambda change: (change[0] in self.slow, -self.gains.get(change[0], 1.0)))


# ------------------------------------------------------------------------------------------------------------ races


@dataclass
class Race:
    """The variants of one generation as their rounds come; losers leave early.

    A variant leaves as soon as the any-time sign test, valid at every pair, says that it is slower than the baseline,
    or where it is grossly slower. With `halving`, the slower half of those left leaves after some rounds, too.
    """

    halving: bool = False
    d: dict[int, list[float]] = field(default_factory=dict)

    def add(self, times: Mapping[int, float]) -> Collection[int]:
        """Times per sample of one round by variant, the baseline's at 0. Returns the variants that stay."""
        for variant, time in times.items():
            if variant:
                self.d.setdefault(variant, []).append(log(time / times[0]))
        staying = [variant for variant in times if variant and not self.is_slower(variant)]
        rounds = max((len(self.d[variant]) for variant in staying), default=0)
        if self.halving and rounds in HALVE_AFTER_ROUNDS:
            ranked = sorted(staying, key=lambda variant: median(self.d[variant]))
            staying = ranked[: (len(ranked) + 1) // 2]
        return [0, *staying]

    def is_slower(self, variant: int) -> bool:
        """Surely, and by what counts."""
        d = self.d.get(variant, [])
        if len(d) >= GROSS_ROUNDS and min(d) > GROSS:
            return True
        below = sum(value < 0 for value in d)
        sure = bool(d) and sign_test_log_e(below, len(d)) >= log(1 / RACE_ALPHA)
        return sure and median(d) >= WORTHWHILE


# ------------------------------------------------------------------------------------------------------- what is known


class Excluded(NamedTuple):
    """Settings that are not tried in combinations, and combinations whose extensions are not tried either."""

    changes: dict[Change, str]  # with the reason
    combinations: list[Settings]


def excluded(session: Session, offer: Offer) -> Excluded:
    """What the session has ruled out: what failed, what is grossly slower alone, what does not train the same."""
    changes: dict[Change, str] = {}
    lost: list[Settings] = []
    for launch in session.launches:
        settings = session.variants[launch.variant]
        if launch.status == "measured" or not settings or launch.stage == PATCHED:
            continue
        if len(settings) == 1:
            changes[next(iter(settings.items()))] = launch.reason or launch.status
        else:
            lost.append(settings)
    for decision in session.decisions:
        if decision.stage == PARITY and decision.action == "dropped":
            changes.update(dict.fromkeys(decision.settings.items(), decision.reason))
    if METRIC_OF[session.goal.objective] in ("throughput", "step_mean"):
        changes.update(_gross(session))
    return Excluded({one: why for one, why in changes.items() if one[0] in offer.values}, lost)


def _gross(session: Session) -> dict[Change, str]:
    """Settings that lose so much alone that no company makes up for it. Smaller losses are left to what is believed:
    one launch of a setting may be unlike the next."""
    singles = [number for number, one in enumerate(session.variants) if len(one) == 1]
    return {
        next(iter(session.variants[variant].items())): "much slower alone"
        for variant, d in _pairs(session, singles).items()
        if Race(d={variant: d}).is_slower(variant) and median(d) > GROSS
    }


def _pairs(session: Session, variants: Collection[int]) -> dict[int, list[float]]:
    """Log-ratios of time per sample to the baseline's, of all pairs of these variants while they were alone."""
    launches = {one.launch: one for one in session.launches if one.stage == ALONE}
    base = {
        block.round: block.wall_ns / block.samples
        for block in session.blocks
        if block.launch in launches and launches[block.launch].variant == 0 and block.samples
    }
    found: dict[int, list[float]] = {}
    for block in session.blocks:
        launch = launches.get(block.launch)
        if launch is not None and launch.variant in variants and block.round in base and block.samples:
            found.setdefault(launch.variant, []).append(log(block.wall_ns / block.samples / base[block.round]))
    return found


def observations(session: Session, metric: str, stages: Collection[str] | None = None) -> list[Observation]:
    """Every launch of every variant against its generation's baseline."""
    measured = (one for one in session.launches if one.status == "measured" and one.stage != PATCHED)
    variants = sorted({launch.variant for launch in measured} - {0})
    matrix = pair_effects(session, metric, variants, stages=stages)
    return [
        Observation(session.variants[variant], generation, float(d), float(np.nan_to_num(half, nan=0.3)))
        for variant, row, halves in zip(matrix.variants, matrix.d, matrix.half_widths, strict=True)
        for generation, d, half in zip(matrix.generations, row, halves, strict=True)
        if np.isfinite(d)
    ]


def combinations_of(offer: Offer, out: Excluded) -> list[Settings]:
    """Every possible combination of what is offered and not ruled out, the baseline first.

    Where there are more than MOST_COMBINATIONS, the scenarios that typically bring least are in no company.
    """
    names = sorted(offer.values, key=lambda name: -offer.gains.get(name, 1.0))
    choices: dict[str, list[str | None]] = {}
    alone: list[Settings] = []
    for name in names:
        values = [value for value in offer.values[name] if (name, value) not in out.changes]
        if prod(map(len, choices.values())) * (1 + len(values)) <= MOST_COMBINATIONS:
            choices[name] = [None, *values]
        else:
            alone += [{name: value} for value in values]
    order = sorted(choices)
    found = []
    for chosen in product(*(choices[name] for name in order)):
        settings = {name: value for name, value in zip(order, chosen, strict=True) if value is not None}
        if not any(one.items() <= settings.items() for one in out.combinations) and offer.clash(settings) is None:
            found.append(settings)
    return [*found, *(one for one in alone if offer.clash(one) is None)]


def unasked(session: Session, best: Settings) -> list[Settings]:
    """A combination without each of its settings, as far as that never took turns with it."""
    generations = _generations_of(session, best)
    return [
        without
        for without in leave_outs(best).values()
        if not generations & _generations_of(session, without) and not _is_lost(session, without)
    ]


def _generations_of(session: Session, settings: Settings) -> set[int]:
    if settings not in session.variants:
        return set()
    return {launch.generation for launch in launches_of(session, session.variants.index(settings))}


def _is_lost(session: Session, settings: Settings) -> bool:
    lost = (session.variants[one.variant] for one in session.launches if one.status != "measured")
    return settings in lost


# ---------------------------------------------------------------------------------------------------------- the choice


class Standing(NamedTuple):
    """A combination with its expected log effect on the objective, less is better, and the standard deviation."""

    settings: Settings
    log_ratio: float
    sd: float

    def gain(self) -> Estimate:
        """As a ratio of the baseline to it, with two standard deviations each way."""
        ends = (exp(-self.log_ratio - 2 * self.sd), exp(-self.log_ratio + 2 * self.sd))
        return Estimate(ratio=exp(-self.log_ratio), low=ends[0], high=ends[1])


@dataclass(frozen=True)
class Belief:
    """What is believed of every combination: the score (log scale, less is better), and whether it keeps the limits.

    scores, allowed: draws x combinations; mean, likely: their averages.
    """

    combinations: tuple[Settings, ...]
    measured: NDArray[np.bool_]
    mean: NDArray[np.float64]
    likely: NDArray[np.float64]  # probability of keeping the limits
    scores: NDArray[np.float64]  # infinite where a draw breaks a limit
    price: float = Goal().price

    def leader(self, may_be: Callable[[Settings], bool] = lambda _: True) -> Settings:
        """Of those measured that may be chosen and are expected to be worth it, the best by what is sure of it, since
        one that was fast by chance has been seen only once. The baseline where there is none."""
        score = self._earned + np.std(np.minimum(self.scores, BEYOND), axis=0)
        score = np.where(self.measured & (self.likely >= LIKELY), score, np.inf)
        order = (self.combinations[at] for at in np.argsort(score, kind="stable") if np.isfinite(score[at]))
        return next((one for one in order if self.is_worthwhile(one) and may_be(one)), {})

    def best(self, may_be: Callable[[Settings], bool] = lambda _: True) -> Settings:
        """The combination to confirm: the leader without what is not expected to earn its price in it, worst first."""
        best = self.leader(may_be)
        while True:
            parts = [one for one in leave_outs(best).values() if self._may_replace(one)]
            without = min(parts, key=lambda one: self.gain_over(best, one), default=best)
            if without == best or self.gain_over(best, without) >= log1p(self.price):
                return best
            best = without

    def _may_replace(self, settings: Settings) -> bool:
        """Whether a part of a combination is a choice."""
        known = settings in self.combinations and self.likely[self.combinations.index(settings)] >= LIKELY
        return known and self.is_worthwhile(settings)

    @property
    def _earned(self) -> NDArray[np.float64]:
        """The mean, where each setting has to earn its price."""
        return self.mean + log1p(self.price) * np.array([len(one) for one in self.combinations])

    def expected(self, settings: Settings) -> float:
        """The log effect of a combination, less is better."""
        return float(self.mean[self.combinations.index(settings)])

    def gain_over(self, settings: Settings, without: Settings) -> float:
        """By how much a combination is expected to be better than another one; 0 where either is ruled out."""
        if settings not in self.combinations or without not in self.combinations:
            return 0.0
        return self.expected(without) - self.expected(settings)

    def regret(self, settings: Settings) -> float:
        """By how much the best is expected to be better than these; 0 where no combination keeps the limits."""
        own = self.scores[:, self.combinations.index(settings)]
        lost = own - self.scores.min(axis=1)
        finite = lost[np.isfinite(lost)]
        return float(finite.mean()) if len(finite) else 0.0

    def is_worthwhile(self, settings: Settings) -> bool:
        """Whether settings are expected to be better by what counts, or are needed to keep the limits."""
        place, base = self.combinations.index(settings), self.combinations.index({})
        return bool(settings) and (self.likely[base] < LIKELY or self.mean[place] <= log(1 - WORTHWHILE))

    def standings(self, most: int = 6) -> list[Standing]:
        """The best combinations measured so far, for whoever looks on."""
        order = [at for at in np.argsort(self.mean) if self.measured[at] and self.likely[at] >= LIKELY]
        return [
            Standing(self.combinations[at], float(self.mean[at]), float(np.std(self.scores[:, at])))
            for at in order[:most]
        ]

    def fullest(self, may_be: Callable[[Settings], bool]) -> Settings:
        """All settings together that are not expected to lose alone: where each hides what another one would bring,
        none of them shows by itself."""
        singles = [one for one in self.combinations if len(one) == 1 and self.expected(one) < WORTHWHILE]
        fullest: Settings = {}
        for single in sorted(singles, key=self.expected):
            more = fullest | single
            if not fullest.keys() & single.keys() and more in self.combinations and may_be(more):
                fullest = more
        return fullest

    def proposals(self, count: int, may_be: Callable[[Settings], bool] = lambda _: True) -> list[Settings]:
        """So many combinations of which one may be the best, of those that may be chosen: the best measured one, the
        two best by what is expected, the fullest one, then each that is expected to add most to those before it, over
        all draws."""
        allowed = np.array([not one or may_be(one) for one in self.combinations])
        scores = np.minimum(np.where(allowed, self.scores, np.inf), BEYOND)
        order = np.argsort(np.where(allowed & (self.likely >= LIKELY), self._earned, np.inf), kind="stable")
        best = self.leader(may_be)
        expected = [self.combinations[at] for at in order[:EXPECTED_BEST] if allowed[at]]
        wanted = [best, *expected, self.fullest(may_be)]
        found = [one for index, one in enumerate(wanted) if one and one not in wanted[:index]][:count]
        reached = np.min([scores[:, self.combinations.index(one)] for one in ({}, *found)], axis=0)
        for _ in range(min(count, len(self.combinations) - 1) - len(found)):
            with_each = np.minimum(scores, reached[:, None]).mean(axis=0)
            place = int(np.lexsort((self.mean, with_each))[0])
            if with_each[place] >= reached.mean():
                break  # no draw has anything better to offer
            found.append(self.combinations[place])
            reached = np.minimum(reached, scores[:, place])
        return found


def believe(session: Session, offer: Offer, *, seed: int = 0) -> Belief:
    """From all that the session has measured."""
    out = excluded(session, offer)
    combinations = combinations_of(offer, out)
    goal = session.goal
    metric = METRIC_OF[goal.objective]
    seen = observations(session, metric)
    main = _posterior(seen, combinations, metric, seed)
    offset = _samples_to_loss(session, combinations)
    mean, scores = main.mean + offset, main.draws + offset
    if goal.planned_steps is not None:
        slower_ns, step_ns = _slower_starts(session, combinations)
        if step_ns:
            slower = slower_ns / (goal.planned_steps * step_ns)
            mean, scores = np.log(slower + np.exp(mean)), np.log(slower + np.exp(scores))
    likely = np.ones(len(combinations))
    for metric, limit, own in limits_of(session):
        measure = _posterior(observations(session, metric), combinations, metric, seed)
        room = log(limit / own)
        likely = np.minimum(likely, (measure.draws <= room).mean(axis=0))
        scores = np.where(measure.draws <= room, scores, np.inf)
    known = {key_of(one.settings) for one in seen}
    measured = np.array([not one or key_of(one) in known for one in combinations])
    return Belief(tuple(combinations), measured, mean, likely, scores, goal.price)


def _posterior(seen: Sequence[Observation], combinations: Sequence[Settings], metric: str, seed: int) -> Posterior:
    launch_sd = MEMORY_SD if metric.startswith("peak_") else likely_launch_sd(seen, LAUNCH_SD_UNPINNED)
    return posterior(combinations, seen, launch_sd=launch_sd, seed=seed)


def limits_of(session: Session) -> list[tuple[str, float, float]]:
    """The user's limits: metric, limit, and the baseline's own figure; without those whose figure is not known."""
    goal = session.goal
    base = launches_of(session, 0)
    numbers = {one.launch for one in base}
    steps = [ns for block in session.blocks if block.launch in numbers for ns in block.step_ns]
    own = {
        "peak_host": max((one.peak_host_bytes or 0 for one in base), default=0),
        "peak_memory": max((one.peak_device_reserved_bytes or 0 for one in base), default=0),
        "step_p99": float(np.quantile(steps, 0.99)) if steps else 0.0,
    }
    limits = {"peak_host": goal.max_host_bytes, "peak_memory": goal.max_device_bytes, "step_p99": goal.max_p99_ns}
    return [(name, float(limit), float(own[name])) for name, limit in limits.items() if limit is not None and own[name]]


def _slower_starts(session: Session, combinations: Sequence[Settings]) -> tuple[NDArray[np.float64], float]:
    """How much slower each combination is expected to start than the baseline (ns), and the baseline's step (ns).

    A setting's share is what its first launch took longer alone, where that is more than start-ups differ anyway.
    """
    base = [one.start_up_ns for one in launches_of(session, 0) if one.start_up_ns is not None]
    base_ns = float(median(base)) if base else 0.0
    slower: dict[Change, float] = {}
    for launch in session.launches:
        settings = session.variants[launch.variant]
        if len(settings) == 1 and launch.start_up_ns is not None:
            extra_ns = launch.start_up_ns - base_ns
            slower.setdefault(next(iter(settings.items())), extra_ns if extra_ns > STARTS_DIFFER * base_ns else 0.0)
    numbers = {one.launch for one in launches_of(session, 0)}
    steps = [block.wall_ns / block.steps for block in session.blocks if block.launch in numbers]
    return (
        np.array([sum(slower.get(change, 0.0) for change in one.items()) for one in combinations]),
        float(median(steps)) if steps else 0.0,
    )


def _samples_to_loss(session: Session, combinations: Sequence[Settings]) -> NDArray[np.float64]:
    """Log-ratio of the samples that each combination needs to the target loss, where the objective is the time to it.

    By its settings that change the optimisation; infinite where the target was not reached.
    """
    if session.goal.objective != "time-to-loss":
        return np.zeros(len(combinations))
    return np.array(
        [log_samples_ratio(session, settings_that(session, ["optimisation"], one)) or 0.0 for one in combinations]
    )
