"""The search: each scenario alone, the helpful ones together, and the winner confirmed in fresh launches.

Passes around an incumbent. In each pass the incumbent, and every setting that differs from it by one scenario, take
turns; what helps is adopted, what adds nothing is removed, and since every pass tries everything again, a lever that
another one had masked gets its second chance. The numbers of the search choose; none of them is printed as the gain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, hypot, log
from statistics import median

from perftool.analysis.parity import loss_parity
from perftool.analysis.recommend import PARITY
from perftool.analysis.stats import LAUNCH_SD_UNPINNED, median_half_width, sign_test_log_e
from perftool.analysis.summary import CONFIRM, all_decided, losses_by_seed
from perftool.analysis.verdict import LOOKS
from perftool.measure.repeat import GENERATION_ROUNDS, measure_repeatedly
from perftool.measure.rounds import Lab
from perftool.records import Block, Decision, Settings
from perftool.scenario import Context, Scenarios, other_values
from perftool.units import percent

ALONE = "alone"
TOGETHER = "together"

PASSES = 4
SHARE_ALONE = 0.2  # of the budget
SHARE_TOGETHER = 0.2  # each further pass
SHARE_CONFIRM = 0.2  # kept back for the end, which also gets what is left
SHARE_PARITY = 0.15  # of the budget, beside it: wall time of the trainings that compare losses
PARITY_SEEDS = 5
PARITY_STEPS = (20, 1000)
RACE_ALPHA = 0.05
PROMISING_SPREADS = 2.0
DRIFT_LIMIT_S = 2.0  # of a warm-up in the search: launches differ by more than the rest of the drift
WORTHWHILE = 0.01  # smaller effects are not advised
MINOR = 0.2  # of the best change's effect: what helps less waits for the next pass, which shows it on top of the others
HOPELESS = 0.15  # what loses more than this, surely, is not tried again in company
CONFIRM_GENERATIONS = min(LOOKS)
WALL_PER_BUDGET = 2.6  # start-ups included, a pass that would end later than this is cut to its best candidates

Change = tuple[str, str]
"""Scenario and value; a scenario's default value takes it out of the settings."""


@dataclass(frozen=True)
class Offer:
    """What may be tried: scenario to its values here without the default, and every scenario's default."""

    values: Mapping[str, Sequence[str]]
    defaults: Mapping[str, str]
    numerics: Collection[str] = ()


def offer_of(scenarios: Scenarios, context: Context, baseline: Settings, allow: Collection[str]) -> Offer:
    """What may be tried here. What changes the optimisation itself is tried only where it is allowed by name."""
    tried = {
        name: scenario for name, scenario in scenarios.items() if scenario.changes != "optimisation" or name in allow
    }
    return Offer(
        values={name: other_values(scenario, context, baseline) for name, scenario in tried.items()},
        defaults={name: baseline.get(name, scenario.default(context)) for name, scenario in scenarios.items()},
        numerics=[name for name, scenario in scenarios.items() if scenario.changes == "numerics"],
    )


@dataclass
class Race:
    """Paired log-ratios of the variants of one generation against an incumbent, as they come.

    Losers leave as soon as the any-time sign test, valid at every pair, says that they are slower.
    """

    incumbent: int
    d: dict[int, list[float]] = field(default_factory=dict)

    def add(self, times: Mapping[int, float]) -> Collection[int]:
        """Times per sample of one round by variant. Returns the variants that stay."""
        if self.incumbent in times:
            for variant, time in times.items():
                if variant != self.incumbent:
                    self.d.setdefault(variant, []).append(log(time / times[self.incumbent]))
        return [variant for variant in times if not self.is_slower(variant)]

    def effect(self, variant: int) -> float | None:
        """Median log-ratio of time: negative is faster. None where there is no pair."""
        return median(self.d[variant]) if self.d.get(variant) else None

    def is_slower(self, variant: int) -> bool:
        return self._sure(variant) and (self.effect(variant) or 0.0) >= WORTHWHILE

    def is_promising(self, variant: int) -> bool:
        """Faster by what is worthwhile and by twice its spread, that between launches included: enough to be tried in
        company, where it has to earn its place, and be confirmed, anyway."""
        effect = self.effect(variant)
        return (
            effect is not None
            and effect <= log(1 - WORTHWHILE)
            and effect < -PROMISING_SPREADS * hypot(LAUNCH_SD_UNPINNED, median_half_width(self.d[variant]))
        )

    def _sure(self, variant: int) -> bool:
        d = self.d.get(variant, [])
        return bool(d) and sign_test_log_e(sum(value < 0 for value in d), len(d)) >= log(1 / RACE_ALPHA)


def with_change(settings: Settings, change: Change, defaults: Mapping[str, str]) -> Settings:
    """The settings with one scenario at another value."""
    name, value = change
    rest = {key: text for key, text in settings.items() if key != name}
    return rest if value == defaults[name] else dict(sorted({**rest, name: value}.items()))


@dataclass
class Known:
    """What the passes have shown of each change: the log-ratio of time to that of its scenario's default."""

    defaults: Mapping[str, str]
    log_ratio: dict[Change, float] = field(default_factory=dict)
    hopeless: set[Change] = field(default_factory=set)

    def learn(self, incumbent: Settings, change: Change, effect: float) -> None:
        """From the effect of a change to an incumbent, which may be to undo something."""
        name, value = change
        present = (name, incumbent.get(name, self.defaults[name]))
        if value == self.defaults[name]:
            self.log_ratio[present] = -effect
        else:
            self.log_ratio[change] = effect + self.log_ratio.get(present, 0.0)

    def expected(self, incumbent: Settings, change: Change) -> float:
        """The effect that the change would have on the incumbent; 0 where nothing is known."""
        name = change[0]
        present = (name, incumbent.get(name, self.defaults[name]))
        return self.log_ratio.get(change, 0.0) - self.log_ratio.get(present, 0.0)


def neighbours(incumbent: Settings, offer: Offer, known: Known) -> list[Change]:
    """Every change of one scenario, to something else or back to its default, the most promising first."""
    undo = [(name, offer.defaults[name]) for name in incumbent]
    other = [
        (name, value)
        for name, values in offer.values.items()
        for value in values
        if incumbent.get(name) != value and (name, value) not in known.hopeless
    ]
    return sorted(other + undo, key=lambda change: known.expected(incumbent, change))


def adopt(incumbent: Settings, effects: Mapping[Change, float], helpful: Collection[Change], offer: Offer) -> Settings:
    """The incumbent with, for each scenario, the best of its helpful changes, where it is not minor beside the best
    of all: one generation cannot tell a small effect from that of a launch."""
    best: dict[str, Change] = {}
    for change in sorted(helpful, key=lambda one: effects[one]):
        if effects[change] <= MINOR * min(effects[one] for one in helpful):
            best.setdefault(change[0], change)
    for change in best.values():
        incumbent = with_change(incumbent, change, offer.defaults)
    return incumbent


def least_valuable(incumbent: Settings, effects: Mapping[Change, float], offer: Offer) -> Change | None:
    """The removal that costs least, if it costs less than is worthwhile. One at a time: two settings that stand in for
    each other look worthless both."""
    removals = [(name, offer.defaults[name]) for name in incumbent]
    free = [change for change in removals if change in effects and effects[change] < WORTHWHILE]
    return min(free, key=lambda change: effects[change], default=None)


def tune(lab: Lab, offer: Offer) -> None:
    """Search and confirm. All decisions stand in the session, with reasons; the last "chosen" is the winner.

    May be interrupted at any moment: what was measured and decided until then is in the session.
    """
    winner = _search(lab, offer)
    if not winner:
        lab.decide(
            Decision(stage=TOGETHER, settings={}, action="chosen", reason="nothing was better than the baseline")
        )
        return
    if set(winner) & set(offer.numerics):
        winner = _keep_parity(lab, winner, offer)
    variant = lab.variant(winner)
    lab.decide(Decision(stage=CONFIRM, settings=winner, action="chosen", reason="best of the search"))
    if variant:
        confirm(lab, variant)


def confirm(lab: Lab, variant: int) -> None:
    """The winner against the baseline, in launches that had no part in choosing it."""
    measure_repeatedly(
        lab,
        CONFIRM,
        [variant],
        budget_s=lab.left_s,
        decided=lambda: all_decided(lab.session, [variant], stages=[CONFIRM]) or _wall_left_s(lab) < 0,
    )


def _search(lab: Lab, offer: Offer) -> Settings:
    incumbent: Settings = {}
    known = Known(offer.defaults)
    for number in range(PASSES):
        stage = f"{TOGETHER} {number}" if number else ALONE
        changes = _that_fit(lab, stage, incumbent, neighbours(incumbent, offer, known), offer)
        if not changes:
            break
        race = _run_pass(lab, stage, incumbent, changes, offer)
        effects: dict[Change, float] = {}
        helpful: list[Change] = []
        for change in changes:
            variant = lab.variant(with_change(incumbent, change, offer.defaults))
            effect = race.effect(variant)
            if effect is not None:
                effects[change] = effect
                known.learn(incumbent, change, effect)
            if race.is_promising(variant):
                helpful.append(change)
            elif variant in lab.lost or (race.is_slower(variant) and effects[change] > HOPELESS):
                known.hopeless.add(change)
        better = adopt(incumbent, effects, helpful, offer)
        if better == incumbent:
            worthless = least_valuable(incumbent, effects, offer)
            if worthless is None:
                break
            better = with_change(incumbent, worthless, offer.defaults)
            reason = f"without it: {percent(exp(-effects[worthless]) - 1)}"
            dropped = {worthless[0]: incumbent[worthless[0]]}
            lab.decide(Decision(stage=stage, settings=dropped, action="dropped", reason=reason))
        else:
            for change in helpful:
                if better.get(change[0]) == change[1]:
                    reason = f"{percent(exp(-effects[change]) - 1)} samples per second in this pass"
                    lab.decide(Decision(stage=stage, settings=dict([change]), action="adopted", reason=reason))
        incumbent = better
        if lab.left_s < (SHARE_CONFIRM + SHARE_TOGETHER / 2) * lab.session.budget_s:
            break
    return incumbent


def _run_pass(lab: Lab, stage: str, incumbent: Settings, changes: Sequence[Change], offer: Offer) -> Race:
    """One generation of the incumbent and its neighbours."""
    reference = lab.variant(incumbent)
    variants = [lab.variant(with_change(incumbent, change, offer.defaults)) for change in changes]
    race = Race(reference)

    def keep(times: Mapping[int, float]) -> Collection[int]:
        return {reference, *race.add(times)}

    share = SHARE_TOGETHER if incumbent else SHARE_ALONE
    budget_s = min(share * lab.session.budget_s, lab.left_s - SHARE_CONFIRM * lab.session.budget_s)
    wanted = list(dict.fromkeys([reference, *variants]))
    lab.launches_to_come = _launches_ahead(len(wanted), stage)
    lab.generation(
        stage,
        wanted,
        budget_s=max(0.0, budget_s),
        rounds=GENERATION_ROUNDS,
        own_caches=False,
        drift_limit_s=DRIFT_LIMIT_S,
        keep=keep,
    )
    return race


def _that_fit(lab: Lab, stage: str, incumbent: Settings, changes: Sequence[Change], offer: Offer) -> list[Change]:
    """Those of the changes that the wall time allows to start, and to confirm if they win; the others are noted as
    untested."""
    if stage == ALONE:
        return list(changes)
    blocks_s = (SHARE_CONFIRM + SHARE_TOGETHER + SHARE_PARITY) * lab.session.budget_s
    left_s = _wall_left_s(lab) - blocks_s
    dearest_s = lab.launch_cost_s(incumbent)
    fitting: list[Change] = []
    for change in changes:
        cost_s = lab.launch_cost_s(with_change(incumbent, change, offer.defaults))
        # Once more for each: this pass and loss parity.
        pairs_s = (CONFIRM_GENERATIONS + 2) * (lab.launch_cost_s() + max(dearest_s, cost_s))
        if left_s - cost_s - pairs_s >= 0:
            left_s, dearest_s = left_s - cost_s, max(dearest_s, cost_s)
            fitting.append(change)
        elif change[1] != offer.defaults[change[0]]:
            reason = "not tried together with the others, since no time was left: raise --budget"
            lab.decide(Decision(stage=stage, settings=dict([change]), action="untested", reason=reason))
    return fitting


def _wall_left_s(lab: Lab) -> float:
    """Wall time until the command has taken as long as its budget promises."""
    return WALL_PER_BUDGET * lab.session.budget_s - lab.elapsed_s


def _launches_ahead(this_pass: int, stage: str) -> int:
    """For the time left: this pass, another one like it, and the confirmation."""
    return this_pass * (2 if stage == ALONE else 1) + 2 * CONFIRM_GENERATIONS


def _keep_parity(lab: Lab, winner: Settings, offer: Offer) -> Settings:
    """The winner, without what changes its numerics where it does not train the same."""

    variant = lab.variant(winner)
    steps = parity_steps(lab.session.blocks, lab.session.budget_s * SHARE_PARITY)
    lab.train_runs([0, variant], range(PARITY_SEEDS), steps, limit_s=lab.start_limit_s + 10 * lab.session.budget_s)
    parity = loss_parity(losses_by_seed(lab.session, 0), losses_by_seed(lab.session, variant), steps=steps)
    if parity.verdict != "differs":
        return winner
    reason = "does not train the same: its loss differs from the baseline's by more than seeds do"
    lab.decide(Decision(stage=PARITY, settings=winner, action="dropped", reason=reason))
    return {name: value for name, value in winner.items() if name not in offer.numerics}


def parity_steps(blocks: Sequence[Block], seconds: float) -> int:
    """Steps of each of the baseline's trainings so that all of them take about so long."""
    step_s = sum(block.wall_ns for block in blocks) / max(1, sum(block.steps for block in blocks)) / 1e9
    least, most = PARITY_STEPS
    return max(least, min(most, int(seconds / PARITY_SEEDS / 2 / max(step_s, 1e-9))))
