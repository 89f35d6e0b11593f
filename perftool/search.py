"""The search: every setting alone, the promising combinations together, the best one beside itself without each of its
settings, and the winner confirmed in fresh launches.

What to try, and what is best, is decided in `analysis/search.py` from the session alone, and what the fresh launches
say in `analysis/confirmation.py`; here it is done, as far as the time allows. After each generation everything is
decided anew, so a lever that another one had masked gets its second chance, and a search that was interrupted goes on
from its session. None of the numbers of the search is printed as the gain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path

from msgspec.structs import replace

from perftool.analysis.confirmation import generation_s, is_better, is_decided, leave_outs, missing, unearned
from perftool.analysis.parity import parity_of, runs_of, settings_that, without
from perftool.analysis.search import REGRET, Belief, Offer, Race, believe, excluded, unasked
from perftool.analysis.verdict import FULL_LOOK, LOOKS
from perftool.measure.aside import train_runs
from perftool.measure.lab import Lab
from perftool.measure.repeat import GENERATION_ROUNDS, NOISY_ROUNDS, measure_repeatedly
from perftool.measure.rounds import generation
from perftool.measure.sandbox import top_of
from perftool.measure.switching import Switching
from perftool.patch.make import make
from perftool.patch.texts import decoded
from perftool.records import (
    ALONE,
    CONFIRM,
    FRESH,
    LEAVE_ONE_OUT,
    PARITY,
    PATCHED,
    TOGETHER,
    TRIM,
    Decision,
    Goal,
    ScriptFacts,
    Session,
    Settings,
)
from perftool.scenario import Context, Scenario, Scenarios, clashes, other_values
from perftool.units import percent
from perftool.words import DATA_WAIT, ROW_BY_ROW

MEMORY_GAIN = 10.0  # puts what is for memory first, where that is wanted
WAIT_MOST = 0.95  # of a step, that better loading is taken to spare
SHARE_ALONE = 0.25  # of the budget, in blocks
SHARE_TOGETHER = 0.15  # each pass
TRIM_LEAST = 0.05  # in blocks, below which nothing would be told of the best combination's settings
SHARE_CONFIRM = 0.25  # kept back for the end, which also gets what is left
SHARE_PARITY = 0.1  # of the budget, beside it: wall time of the trainings that compare losses
WALL_PER_BUDGET = 2.45  # start-ups included; what would end later is cut to its best candidates
WALL_MOST = 2.8  # with what is taken beyond it where that decides: three with the command's own start and end
SLOW_MOST, SLOW_TIMES = 0.5, 3.0  # of the budget, and of a usual start: then the search goes on without it
GRACE, GRACE_MOST = 0.4, 3  # of the budget, in wall time, for the combinations of a first pass that would be too late
PASSES_MOST = 12
TOGETHER_MOST = 10  # combinations of a pass
BEFORE_SLOW = 4  # of them, that come before what starts slowly
LEAST_ROUNDS = 5  # below which a launch is hardly worth its start
TURN_STEPS = 2  # at least, in each round: one is dropped
ALONE_LEAST = 2  # settings that are tried whatever they cost
SEEN_LEAST = 2  # launches of the best before the search may end early
PARITY_SEEDS = (5, 10)  # more where fewer do not decide
PARITY_STEPS = (20, 1000)
DRIFT_LIMIT_S = 0.3  # of a warm-up in the search: launches differ by more than the rest of the drift
CONFIRM_DRIFT_LIMIT_S = 1.0
CONFIRM_GENERATIONS = min(LOOKS)  # for which time is kept, and in which each setting is left out in any case
CONFIRM_BESIDE = 3  # launches beside a winner's that a usual confirmation has: settings left out, a patched script
CONFIRM_LEAST_S = 8.0  # of blocks: where start-ups alone take longer than the search may, fewer would tell nothing
STRETCH_S = 3.0  # on end, of each launch that confirms on a GPU: until its clock and its power are what they stay
LONGER_WARM_S = CONFIRM_DRIFT_LIMIT_S - DRIFT_LIMIT_S
MORE_SHARE = 0.5  # of the budget, in wall time, that the search may take beyond it where that is all it needs


def offer_of(scenarios: Scenarios, context: Context, baseline: Settings, goal: Goal) -> Offer:
    """What may be tried here. What changes the optimisation itself is tried only where it is allowed by name, and what
    saves memory at the price of time only where memory is the objective or limited, or where it is named."""
    tried = {
        name: scenario
        for name, scenario in scenarios.items()
        if (scenario.changes != "optimisation" or name in goal.allow)
        and (not scenario.for_memory or goal.is_about_memory or name in goal.only)
        and name not in goal.keep
        and (not goal.only or name in goal.only)
    }
    return Offer(
        values={name: other_values(scenario, context, baseline) for name, scenario in tried.items()},
        defaults={name: baseline.get(name, scenario.default(context)) for name, scenario in scenarios.items()},
        gains={
            name: MEMORY_GAIN if scenario.for_memory else _likely_gain(scenario, context)
            for name, scenario in tried.items()
        },
        clash=lambda settings: clashes({**baseline, **settings}, scenarios, context.workload.driver),
        slow=frozenset(name for name, scenario in tried.items() if scenario.compiles(context)),
    )


def _likely_gain(scenario: Scenario, context: Context) -> float:
    """What it typically brings, of the part of the step that it acts on, as far as the first steps show that (Amdahl's
    law); for the order in which things are tried."""
    wait = context.workload.wait_share
    if wait is None:
        return scenario.typical_gain
    wait = min(wait, WAIT_MOST)
    if {DATA_WAIT, ROW_BY_ROW} & scenario.cures_beyond(scenario.default(context), context).keys():
        return 1 / (1 - wait)
    return 1 / (wait + (1 - wait) / scenario.typical_gain)


def switching_of(scenarios: Scenarios, context: Context, baseline: Settings, goal: Goal) -> Switching:
    """Which settings the search may switch within a process: none where the goal is about the process, or its tails,
    nor where the baseline itself has something that stays in it: compiled code is compiled again at each switch."""
    moved = [name for name, value in baseline.items() if value != scenarios[name].default(context)]
    if context.workload.compiled or any(scenarios[name].compiles(context) for name in moved):
        return Switching()
    limits = (goal.max_host_bytes, goal.max_device_bytes, goal.max_p99_ns)
    if goal.objective in ("memory", "jitter") or any(limit is not None for limit in limits):
        return Switching()
    return Switching(
        live=frozenset(name for name, scenario in scenarios.items() if scenario.switches(context)),
        single=frozenset(name for name, scenario in scenarios.items() if scenario.compiles(context)),
    )


def tune(lab: Lab, offer: Offer, switching: Switching = Switching()) -> None:  # noqa: B008
    """Search and confirm. All decisions stand in the session, with reasons; the last "chosen" is the winner.

    switching: what of it need not have a process of its own, until it is confirmed.
    May be interrupted at any moment: what was measured and decided until then is in the session. Called again on it, it
    goes on.
    """
    lab.switching = switching
    began_s, budget_s = lab.elapsed_s, lab.left_s
    lab.deadline_s = deadline_s = began_s + WALL_PER_BUDGET * budget_s
    _await_slow_starts(lab, offer)
    winner = _chosen(lab.session)
    if winner is None:
        if not _measured(lab.session, ALONE):
            _try_alone(lab, offer, deadline_s)
        winner = _search(lab, offer, deadline_s)
        reason = "best of the search" if winner else "nothing was better than the baseline"
        lab.ledger.enter(Decision(stage=CONFIRM, settings=winner, action="chosen", reason=reason))
    while winner:
        _confirm(lab, offer, winner, deadline_s, began_s + WALL_MOST * budget_s)
        winner = _without_what_earns_nothing(lab, offer, winner)


def _chosen(session: Session) -> Settings | None:
    return next((one.settings for one in reversed(session.decisions) if one.action == "chosen"), None)


def _measured(session: Session, stage: str) -> bool:
    """Whether a variant of this stage has run a block; where it was interrupted before, it is done again."""
    ran = {block.launch for block in session.blocks}
    return any(launch.stage == stage and launch.variant and launch.launch in ran for launch in session.launches)


# ------------------------------------------------------------------------------------------------------------- alone


def _try_alone(lab: Lab, offer: Offer, deadline_s: float) -> None:
    """Every setting by itself, as many as fit: what works at all, and what it does. What starts slowly is kept for the
    passes of combinations, so that something is known soon."""
    budget_s = SHARE_ALONE * lab.session.budget_s
    left_s = _search_left_s(lab, offer, deadline_s) - budget_s
    chosen: list[Settings] = []
    for change in offer.changes():
        settings = dict([change])
        if change[0] in offer.slow:
            continue
        fits = len(chosen) < _races(lab, budget_s) and lab.switched_s([*chosen, settings]) <= left_s
        if fits or len(chosen) < ALONE_LEAST:
            chosen.append(settings)
        else:
            _note_untested(lab, settings)
    if chosen:
        _race(lab, ALONE, [lab.variant(settings) for settings in chosen], Race(), budget_s)


def _races(lab: Lab, blocks_s: float) -> int:
    """How many launches such a time in blocks is enough for."""
    return int(blocks_s / (LEAST_ROUNDS * TURN_STEPS * _step_s(lab.session)))


def _note_untested(lab: Lab, settings: Settings) -> None:
    reason = "not tried, since its turn did not come within the time: raise --budget"
    lab.ledger.enter(Decision(stage=ALONE, settings=settings, action="untested", reason=reason))


def _step_s(session: Session) -> float:
    """Of the baseline: as measured, or as the first ones took."""
    steps = sum(block.steps for block in session.blocks)
    if steps:
        return sum(block.wall_ns for block in session.blocks) / steps / 1e9
    return (session.first_step_ns or 0) / 1e9 or 1e-6


def _race(lab: Lab, stage: str, variants: Sequence[int], race: Race, budget_s: float) -> None:
    timed = lab.session.goal.objective not in ("memory", "jitter")

    def keep(times: Mapping[int, float]) -> Collection[int]:
        return race.add(times) if timed else list(times)

    lab.launches_to_come = len(variants) + 1 + CONFIRM_GENERATIONS * 2
    generation(
        lab,
        stage,
        variants,
        budget_s=min(budget_s, max(0.0, lab.left_s - SHARE_CONFIRM * lab.session.budget_s)),
        rounds=GENERATION_ROUNDS,
        noisy_rounds=NOISY_ROUNDS,
        own_caches=False,
        drift_limit_s=DRIFT_LIMIT_S,
        even_time=True,
        keep=keep,
        shared=True,
    )


# ---------------------------------------------------------------------------------------------------------- together


def _search(lab: Lab, offer: Offer, deadline_s: float) -> Settings:
    """Passes over the combinations that may be the best, until nothing is to be gained or the time is up."""
    if lab.session.goal.objective == "time-to-loss":
        _learn_samples_to_loss(lab, offer)
    for number in range(1, PASSES_MOST + 1):
        stage = f"{TOGETHER} {number}"
        if _measured(lab.session, stage):
            continue  # before an interruption
        belief = believe(lab.session, offer, seed=lab.session.seed + number)
        lab.show(belief.standings())
        slow = _await_slow_starts(lab, offer)
        is_settled = _is_settled(lab.session, belief)
        before = 0 if is_settled or number > 1 or offer.is_slow_first else BEFORE_SLOW
        wanted = _that_fit(lab, belief, offer, deadline_s, before)
        if is_settled and not any(one in wanted for one in slow):
            break
        if not wanted and number == 1:  # rather a little late than without any combination
            late = _that_fit(lab, belief, offer, deadline_s, before, GRACE * lab.session.budget_s)
            wanted = late[:GRACE_MOST] if offer.is_slow_first else [one for one in late if one not in slow][:GRACE_MOST]
        if not wanted:
            break
        variants = [lab.variant(one) for one in wanted]
        _race(lab, stage, variants, Race(halving=True), SHARE_TOGETHER * lab.session.budget_s)
    for settings in _slow_ones(lab.session, offer):
        _note_untested(lab, settings)
    while True:
        best = _trimmed(lab, offer, deadline_s)
        if not best or not _ruled_out(lab, best):
            return best


def _trimmed(lab: Lab, offer: Offer, deadline_s: float) -> Settings:
    """The best combination, after it took turns with itself without each of its settings, as far as the time allows."""
    for number in range(1, PASSES_MOST + 1):
        stage = f"{TRIM} {number}"
        belief = believe(lab.session, offer)
        lab.show(belief.standings())
        if _measured(lab.session, stage):
            continue  # before an interruption
        best = belief.leader(lambda one: _affordable(lab, one, deadline_s))
        asked = [one for one in unasked(lab.session, best) if one in belief.combinations]
        wanted = sorted(asked, key=belief.expected)[: lab.live_limit - 2]  # what is missed least first
        blocks_s = min(SHARE_TOGETHER * lab.session.budget_s, lab.left_s - SHARE_CONFIRM * lab.session.budget_s)
        left_s = _search_left_s(lab, offer, deadline_s) + GRACE * lab.session.budget_s - blocks_s
        if not wanted or blocks_s < TRIM_LEAST * lab.session.budget_s or lab.switched_s([best, *wanted]) > left_s:
            break  # what does not surely earn its price goes unasked
        variants = [lab.variant(one) for one in (best, *wanted)]
        _race(lab, stage, variants, Race(), SHARE_TOGETHER * lab.session.budget_s)
    best = belief.best(lambda one: _affordable(lab, one, deadline_s)) or belief.best()  # rather late than nothing
    _note_unaffordable(lab, belief, best)
    return best


def _note_unaffordable(lab: Lab, belief: Belief, best: Settings) -> None:
    """Tell of what looks better than the winner, and takes too long to start for a confirmation in time."""
    better = belief.best()
    for setting in better.items() - best.items() if better != best else ():
        reason = "looks faster, but starts too slowly to be confirmed within the time: raise --budget"
        lab.ledger.enter(Decision(stage=CONFIRM, settings=dict([setting]), action="untested", reason=reason))


def _is_settled(session: Session, belief: Belief) -> bool:
    """Whether further passes are not expected to find anything better than what was seen more than once."""
    best = belief.leader()
    number = session.variants.index(best)
    launches = sum(launch.variant == number and launch.status == "measured" for launch in session.launches)
    return belief.regret(best) <= REGRET and launches >= SEEN_LEAST


def _await_slow_starts(lab: Lab, offer: Offer) -> list[Settings]:
    """The settings that start slowly, as far as nothing is known of them yet. As much time is kept for each as it is
    waited for."""
    slow = _slow_ones(lab.session, offer)
    patience_s = max(SLOW_MOST * lab.session.budget_s, SLOW_TIMES * lab.start_s({}))
    for change in (change for one in slow for change in one.items()):
        lab.expect_start(change, patience_s)
        lab.patience_s[change] = patience_s
    return slow


def _slow_ones(session: Session, offer: Offer) -> list[Settings]:
    """The settings that start slowly, as far as nothing is known of them yet."""
    known = [one.settings for one in session.decisions if one.action == "untested"]
    known += [session.variants[launch.variant] for launch in session.launches]
    slow = [dict([change]) for change in offer.changes() if change[0] in offer.slow]
    return [settings for settings in slow if settings not in known]


def _that_fit(
    lab: Lab, belief: Belief, offer: Offer, deadline_s: float, before: int, grace_s: float = 0.0
) -> list[Settings]:
    """The likeliest combinations, as many as may be started and raced, each of which could be confirmed if it won.

    What starts slowly is in none as long as nothing is known of it: it comes by itself, after so many of the likeliest
    as `before` says, and leaves room for. grace_s: that the search may take beyond its time.
    """
    unknown = _slow_ones(lab.session, offer)
    blocks_s = min(SHARE_TOGETHER * lab.session.budget_s, lab.left_s - SHARE_CONFIRM * lab.session.budget_s)
    races = _races(lab, blocks_s)
    slow = [settings for settings in unknown if _affordable(lab, settings, deadline_s)]
    left_s = _search_left_s(lab, offer, deadline_s) + grace_s - blocks_s
    alone_s = lab.switched_s(slow)  # which no other pass has
    if (left_s - alone_s) / 2 > lab.switched_s([{}]) + blocks_s:
        left_s -= (left_s - alone_s) / 2  # the rest is for another pass, which knows more

    def may_be(settings: Settings) -> bool:
        return _affordable(lab, settings, deadline_s) and not any(one.items() <= settings.items() for one in unknown)

    likeliest = belief.proposals(TOGETHER_MOST, may_be)
    first = max(0, min(before, races - len(slow)))
    fitting: list[Settings] = []
    for settings in [*likeliest[:first], *slow, *likeliest[first:]]:
        if len(fitting) < races and lab.switched_s([*fitting, settings]) <= left_s:
            fitting.append(settings)
    return fitting


def _affordable(lab: Lab, settings: Settings, deadline_s: float) -> bool:
    """Whether a winner could still be confirmed in time."""
    left_s = deadline_s - lab.elapsed_s - SHARE_CONFIRM * lab.session.budget_s
    first_s, further_s = lab.launches_s([settings]), lab.launches_s([settings], again=True)
    return first_s + (CONFIRM_GENERATIONS - 1) * further_s <= left_s


def _search_left_s(lab: Lab, offer: Offer, deadline_s: float) -> float:
    """Wall time that the search may still take; a usual confirmation, and a comparison of losses where there is a
    change that asks for one, are left out."""
    session = lab.session
    usual: list[Settings] = [{}] * (1 + CONFIRM_BESIDE)
    confirming_s = CONFIRM_GENERATIONS * (_generation_s(lab, usual) + _stretches_s(lab))
    out = excluded(session, offer).changes
    left = dict(change for change in offer.changes() if change not in out)
    compares = bool(settings_that(session, ["numerics", "optimisation"], left))
    comparing_s = lab.launches_s([{}]) + SHARE_PARITY * session.budget_s if compares else 0.0
    return deadline_s - lab.elapsed_s - confirming_s - comparing_s - SHARE_CONFIRM * session.budget_s


# ------------------------------------------------------------------------------------------------------------- losses


def _ruled_out(lab: Lab, best: Settings) -> bool:
    """Whether these settings do not train the same; what changes their numerics is out of the search then."""
    session = lab.session
    numerics = settings_that(session, ["numerics"], best)
    optimising = settings_that(session, ["optimisation"], best)
    if not numerics and not optimising:
        return False
    if not runs_of(session, best):
        _train(lab, best)
    parity = parity_of(lab.session, best)
    if parity is None or parity.verdict != "differs":
        return False
    reason = "does not train the same: its loss differs from that without it by more than seeds do"
    lab.ledger.enter(Decision(stage=PARITY, settings=numerics, action="dropped", reason=reason))
    return True


def _train(lab: Lab, settings: Settings) -> None:
    """The settings, what they are without numerics, and without anything that changes the training: from the same
    seeds, and from more where those do not decide."""
    session = lab.session
    peers = [without(session, kinds, settings) for kinds in (["numerics", "optimisation"], ["numerics"])]
    variants = list(dict.fromkeys(lab.variant(one) for one in [*peers, settings]))
    steps = parity_steps(_step_s(session), SHARE_PARITY * session.budget_s)
    done = 0
    for seeds in PARITY_SEEDS:
        train_runs(lab, variants, range(done, seeds), steps, limit_s=lab.start_limit_s + 10 * session.budget_s)
        done = seeds
        parity = parity_of(lab.session, settings)
        if parity is None or parity.verdict != "undecided" or parity.seeds < seeds:
            return


def _learn_samples_to_loss(lab: Lab, offer: Offer) -> None:
    """How many samples each change of the optimisation needs to the target loss, all that are allowed together."""
    allowed = lab.session.goal.allow
    choices = [[(name, None), *((name, value) for value in offer.values.get(name, ()))] for name in allowed]
    for chosen in product(*choices):
        settings = {name: value for name, value in sorted(chosen) if value is not None}
        if settings and offer.clash(settings) is None and not runs_of(lab.session, settings):
            _train(lab, settings)


def parity_steps(step_s: float, seconds: float) -> int:
    """Steps of each of the trainings so that all of them take about so long."""
    least, most = PARITY_STEPS
    return max(least, min(most, int(seconds / PARITY_SEEDS[0] / 2 / step_s)))


# ------------------------------------------------------------------------------------------------------- confirmation


def _confirm(lab: Lab, offer: Offer, winner: Settings, deadline_s: float, last_s: float) -> None:
    """The winner against the baseline, in launches that had no part in choosing it; beside it the patched script, and
    the winner without each of its settings.

    last_s: until when, of the time elapsed, a little more may be measured where that decides.
    """
    lab.patience_s.clear()
    lab.deadline_s = None  # from here on it is known what is to come
    variant = lab.variant(winner)
    patched = _patched(lab, winner)
    always = {} if patched is None else {patched: PATCHED}
    aside = dict.fromkeys(_to_leave_out(lab, offer, winner, last_s, len(always)), LEAVE_ONE_OUT)

    def decided() -> bool:
        return is_decided(lab.session, winner, aside) or deadline_s < lab.elapsed_s

    if lab.elapsed_s > deadline_s and is_better(lab.session, winner):
        return  # a winner less a setting, which was measured beside it

    def guests(done: int) -> Mapping[int, str]:
        present = [winner, *(winner for number in always if number not in lab.lost)]
        settings = [lab.session.variants[number] for number in aside if number not in lab.lost]
        cost_s = lab.launches_s([*present, *settings]) - lab.launches_s(present)
        to_come_s = max(1, CONFIRM_GENERATIONS - done) * lab.launches_s(present)
        blocks_s = SHARE_CONFIRM * lab.session.budget_s
        affords = cost_s + to_come_s + blocks_s <= deadline_s - lab.elapsed_s
        return always | (aside if affords or done < CONFIRM_GENERATIONS else {})

    usual = [winner] * (1 + len(always) + len(aside))
    in_time_s = deadline_s - lab.elapsed_s - CONFIRM_GENERATIONS * lab.launches_s(usual)
    blocks_s = min(lab.left_s, max(CONFIRM_LEAST_S, SHARE_CONFIRM * lab.session.budget_s, in_time_s))
    end_s = lab.spent_s + blocks_s

    def planned(done: int) -> int:
        """As many generations as there is time for: where launches take long to start, few with many rounds."""
        whole = max(0, CONFIRM_GENERATIONS - done)
        left_s = last_s - lab.elapsed_s - (end_s - lab.spent_s)
        left_s -= whole * (lab.launches_s(usual) + _stretches_s(lab))
        bare = int(max(0.0, left_s) / lab.launches_s([winner] * (1 + len(always))))
        return max(min(LOOKS), min(FULL_LOOK, done + whole + bare))

    done = measure_repeatedly(
        lab,
        CONFIRM,
        [variant],
        budget_s=blocks_s,
        decided=decided,
        guests=guests,
        counted=FRESH,
        drift_limit_s=CONFIRM_DRIFT_LIMIT_S,
        stretch_s=_stretches_s(lab) / 2,
        planned=planned,
    )
    enough = None if is_decided(lab.session, winner, aside) else missing(lab.session, winner)
    if enough is None or enough <= done:
        return
    # What a little more time would decide is not left open.
    blocks_s = generation_s(lab.session, winner)
    more_s = (enough - done) * (lab.launches_s([winner] * (1 + len(always)), again=True) + blocks_s)
    if more_s <= min(MORE_SHARE * lab.session.budget_s, last_s - lab.elapsed_s):
        lab.extend((enough - done) * blocks_s)
        measure_repeatedly(
            lab,
            CONFIRM,
            [variant],
            budget_s=(enough - done) * blocks_s,
            decided=lambda: is_decided(lab.session, winner, aside),
            guests=lambda _: always,
            first_look=enough,
            counted=FRESH,
            drift_limit_s=CONFIRM_DRIFT_LIMIT_S,
        )


def _to_leave_out(lab: Lab, offer: Offer, winner: Settings, last_s: float, others: int) -> list[int]:
    """The winner's variants without a setting that take turns with it: what is missed least first, as many as may live
    and start in time.

    others: further launches that a generation has beside them.
    """
    belief = believe(lab.session, offer)
    lacking = sorted(leave_outs(winner).values(), key=lambda one: belief.gain_over(winner, one))
    room = max(0, lab.live_limit - 2 - others)  # beside the baseline and the winner, which they must meet
    present = [winner] * (1 + others)
    left_s = last_s - lab.elapsed_s - max(CONFIRM_LEAST_S, SHARE_CONFIRM * lab.session.budget_s)
    left_s -= (FULL_LOOK - CONFIRM_GENERATIONS) * _generation_s(lab, present, again=True)

    def fit(count: int) -> bool:
        launches = [*present, *lacking[:count]]
        further_s = (CONFIRM_GENERATIONS - 1) * _generation_s(lab, launches, again=True)
        return _generation_s(lab, launches) + further_s + CONFIRM_GENERATIONS * _stretches_s(lab) <= left_s

    fits = 1
    while fits < len(lacking) and fit(fits + 1):
        fits += 1
    return [number for one in lacking[: min(fits, room)] if (number := lab.variant(one))]


def _generation_s(lab: Lab, launches: Sequence[Settings], *, again: bool = False) -> float:
    """Wall time of one of the confirmation with these launches beside the baseline's, without its blocks."""
    return lab.launches_s(launches, again=again) + (1 + len(launches)) * LONGER_WARM_S


def _stretches_s(lab: Lab) -> float:
    """Of a generation: the baseline and the winner on end."""
    return 2 * STRETCH_S if lab.session.machine.device.startswith("cuda") else 0.0


def _without_what_earns_nothing(lab: Lab, offer: Offer, winner: Settings) -> Settings:
    """The winner to confirm in place of this one: without the setting that is not worth its price; {} where each is,
    and this one stays."""
    belief = believe(lab.session, offer)
    idle = unearned(lab.session, winner, lambda without: belief.gain_over(winner, without))
    if idle is None:
        return {}
    name, gain = idle
    told = f"brings {percent(gain.ratio - 1)} ({percent(gain.low - 1)} to {percent(gain.high - 1)}) beside the others"
    lab.ledger.enter(Decision(stage=CONFIRM, settings={name: winner[name]}, action="dropped", reason=told))
    rest = leave_outs(winner)[name]
    lab.ledger.enter(Decision(stage=CONFIRM, settings=rest, action="chosen", reason="without what earns nothing"))
    return rest


def _patched(lab: Lab, winner: Settings) -> int | None:
    """The variant that has the winner's settings in the script's own files; None where they write nothing there.

    The patch is made of the files as they are now, and entered.
    """
    session = lab.session
    facts = session.workload.script
    if facts is None:
        return None
    root = root_of(facts)
    patch = make(
        {**session.baseline, **winner},
        session.codes,
        facts.sites,
        lambda file: decoded(Path(file).read_bytes()),
        str(root),
    )
    before = session.patch
    if before is not None and replace(before, variant=None) == patch:  # a search that goes on
        return before.variant
    variant = lab.ledger.another(winner) if patch.files else None
    lab.ledger.enter(replace(patch, variant=variant))
    return variant


def root_of(facts: ScriptFacts) -> Path:
    """The folder that a patch is for: of the working folder and the script's own the repository, the first that has
    the script."""
    folder = top_of(Path(facts.folder).resolve())
    main = next((Path(site.file) for site in facts.sites if site.kind == "main"), folder)
    return folder if main.is_relative_to(folder) else top_of(main.parent)
