"""What the search decides, on sessions with scripted numbers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perftool.analysis.search import Offer, Race, believe, combinations_of, excluded, observations
from perftool.records import ALONE, PARITY, Decision, Goal, Session, Settings
from tests.sessions import Timed, make_launch, timed_session

OFFER = Offer(
    values={"amp": ["bf16"], "optimizer_kernel": ["foreach", "fused"], "threads": ["1"]},
    defaults={"amp": "off", "optimizer_kernel": "for-loop", "threads": "2"},
)
ALONE_MS: list[Timed] = [
    ({}, 10.0),
    ({"amp": "bf16"}, 6.0),
    ({"optimizer_kernel": "foreach"}, 10.5),
    ({"optimizer_kernel": "fused"}, 8.0),
    ({"threads": "1"}, 28.0),
]


def alone(**changes: object) -> Session:
    session = timed_session(ALONE_MS, command="tune", stage=ALONE, generations=1, rounds=30, noise=0.002)
    return replace(session, **changes)


def test_the_offer_names_its_changes_what_typically_brings_most_first() -> None:
    offer = Offer(values=OFFER.values, defaults=OFFER.defaults, gains={"threads": 1.2, "amp": 1.5})
    assert offer.changes() == [
        ("amp", "bf16"),
        ("threads", "1"),
        ("optimizer_kernel", "foreach"),
        ("optimizer_kernel", "fused"),
    ]


def test_all_combinations_but_what_is_ruled_out_or_clashes() -> None:
    everything = combinations_of(OFFER, excluded(timed_session([({}, 1.0)]), OFFER))
    assert len(everything) == 2 * 3 * 2
    assert {} in everything
    hopeless = excluded(alone(), OFFER)
    assert list(hopeless.changes) == [("threads", "1")]
    assert all("threads" not in one for one in combinations_of(OFFER, hopeless))
    clashing = Offer(
        values=OFFER.values,
        defaults=OFFER.defaults,
        clash=lambda one: "no" if {"amp", "threads"} <= set(one) else None,
    )
    assert len(combinations_of(clashing, excluded(timed_session([({}, 1.0)]), OFFER))) == 9


def test_a_lost_combination_takes_its_extensions_along_and_a_lost_setting_itself() -> None:
    session = alone()
    session.variants.append({"amp": "bf16", "optimizer_kernel": "fused"})
    session.launches.append(make_launch(90, 5, 1, "together 1", status="failed", reason="out of memory"))
    session.launches.append(make_launch(91, 2, 1, ALONE, status="skipped", reason="did not take effect"))
    found = combinations_of(OFFER, excluded(session, OFFER))
    assert found == [{}, {"optimizer_kernel": "fused"}, {"amp": "bf16"}]


def test_what_does_not_train_the_same_is_ruled_out_for_that() -> None:
    session = alone()
    session.decisions.append(Decision(stage=PARITY, settings={"amp": "bf16"}, action="dropped", reason="it differs"))
    assert excluded(session, OFFER).changes["amp", "bf16"] == "it differs"


def test_too_many_combinations_leave_out_what_typically_brings_least() -> None:
    values = {f"lever_{number:02}": ["1", "2", "3"] for number in range(12)}
    offer = Offer(
        values=values,
        defaults=dict.fromkeys(values, "0"),
        gains={name: 1.0 + number / 100 for number, name in enumerate(values)},
    )
    found = combinations_of(offer, excluded(timed_session([({}, 1.0)]), offer))
    assert len(found) == 4**7 + 5 * 3
    assert {name for one in found if len(one) > 1 for name in one} == set(list(values)[5:])
    assert {name for one in found if len(one) == 1 for name in one} == set(values), "each may win alone"


def test_belief_prefers_what_adds_up_and_asks_for_it() -> None:
    belief = believe(alone(), OFFER)
    assert belief.best() == {"amp": "bf16"}
    assert belief.best(lambda one: "amp" not in one) == {"optimizer_kernel": "fused"}
    assert belief.best(lambda _: False) == {}
    assert belief.regret({"amp": "bf16"}) > 0.1
    first, second, *_ = belief.proposals(4)
    assert (first, second) == ({"amp": "bf16"}, {"amp": "bf16", "optimizer_kernel": "fused"})
    assert all("amp" not in one for one in belief.proposals(4, lambda one: "amp" not in one))
    assert belief.is_worthwhile({"amp": "bf16"})
    assert not belief.is_worthwhile({})
    assert not belief.is_worthwhile({"optimizer_kernel": "foreach"})


def test_a_setting_that_earns_nothing_is_left_out() -> None:
    """The pair is a hair faster than amp alone: not worth another line in somebody's script."""
    session = timed_session(
        [*ALONE_MS, ({"amp": "bf16", "optimizer_kernel": "fused"}, 5.99)],
        command="tune",
        stage=ALONE,
        generations=4,
        rounds=30,
        noise=0.001,
    )
    assert believe(session, OFFER).best() == {"amp": "bf16"}


def test_standings_are_ratios_best_first() -> None:
    best, *_ = believe(alone(), OFFER).standings()
    assert best.settings == {"amp": "bf16"}
    gain = best.gain()
    assert gain.low < gain.ratio < gain.high
    assert gain.ratio == pytest.approx(10 / 6, rel=0.03)


@pytest.mark.parametrize(
    ("limit_bytes", "best"),
    [(None, {"amp": "bf16"}), (350_000_000, {"optimizer_kernel": "fused"}), (100_000_000, {})],
)
def test_limits_keep_out_what_breaks_them(limit_bytes: int | None, best: Settings) -> None:
    session = alone(goal=Goal(max_host_bytes=limit_bytes))
    peaks = {0: 300_000_000, 1: 400_000_000}
    session.launches[:] = [
        replace(one, peak_host_bytes=peaks.get(one.variant, 300_000_000)) for one in session.launches
    ]
    assert believe(session, OFFER).best() == best


def test_a_p99_limit() -> None:
    """amp is fastest, with a tail."""
    session = alone(goal=Goal(max_p99_ns=15e6))
    amp = next(one.launch for one in session.launches if one.variant == 1)
    session.blocks[:] = [
        replace(block, step_ns=[*block.step_ns[:-1], 40_000_000]) if block.launch == amp else block
        for block in session.blocks
    ]
    assert believe(session, OFFER).best() == {"optimizer_kernel": "fused"}


def test_observations_are_every_launch_against_its_generations_baseline() -> None:
    found = observations(alone(), "throughput")
    assert [one.settings for one in found] == [one for one, _ in ALONE_MS[1:]]
    assert all(one.generation == 0 and 0 <= one.sd < 0.01 for one in found)


# ------------------------------------------------------------------------------------------------------------- races


def test_the_race_drops_a_loser_only_when_sure() -> None:
    race = Race()
    for _ in range(5):
        assert set(race.add({0: 1.0, 1: 1.05})) == {0, 1}
    for _ in range(5):
        staying = race.add({0: 1.0, 1: 1.05})
    assert set(staying) == {0}
    assert race.is_slower(1)


def test_the_race_keeps_what_differs_by_less_than_is_worthwhile() -> None:
    race = Race()
    for _ in range(200):
        assert set(race.add({0: 1.0, 1: 1.005})) == {0, 1}


def test_what_is_grossly_slower_leaves_after_three_rounds_and_one_slow_block_does_not_count() -> None:
    race = Race()
    assert set(race.add({0: 1.0, 1: 40.0, 2: 9.0})) == {0, 1, 2}
    assert set(race.add({0: 1.0, 1: 40.0, 2: 1.0})) == {0, 1, 2}
    assert set(race.add({0: 1.0, 1: 40.0, 2: 1.0})) == {0, 2}


def test_halving_lets_the_faster_half_go_on() -> None:
    race = Race(halving=True)
    times = {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.95, 4: 0.7, 5: 0.6}
    staying = set(times)
    for number in range(1, 45):
        staying = set(race.add({one: times[one] for one in staying}))
        expected = {0, 1, 2, 3, 4, 5} if number < 20 else {0, 2, 4, 5} if number < 40 else {0, 4, 5}
        assert staying == expected, number
