"""The search on scripted launches: levers that add up, mask each other, hurt, fail, or change what is learnt."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.measure import messages
from perftool.measure.launch import LaunchFailed
from perftool.records import Session, Settings
from perftool.tune import Known, Offer, Race, adopt, least_valuable, neighbours, parity_steps, tune, with_change
from tests.measure.fakes import Script, make_lab, make_session

OFFER = Offer(
    values={
        "amp": ["bf16"],
        "batch_gather": ["on"],
        "dataloader_workers": ["1", "2"],
        "malloc_retention": ["on"],
        "matmul_precision": ["medium"],
        "optimizer_kernel": ["foreach", "fused"],
    },
    defaults={
        "amp": "off",
        "batch_gather": "off",
        "dataloader_workers": "0",
        "malloc_retention": "off",
        "matmul_precision": "highest",
        "optimizer_kernel": "for-loop",
    },
    numerics=("amp", "matmul_precision"),
)


def step_s(chosen: Settings) -> float:
    """A world like the one of LEVERS: gather shows only once autocast has shrunk the matmuls, and autocast makes the
    matmul precision pointless."""
    time = 0.010
    if chosen.get("amp") == "bf16":
        time *= 0.5
        time *= 0.8 if chosen.get("batch_gather") == "on" else 1.0
    elif chosen.get("matmul_precision") == "medium":
        time *= 0.85
    time *= {"fused": 0.7, "foreach": 0.9}.get(chosen.get("optimizer_kernel", ""), 1.0)
    time *= 0.9 if chosen.get("malloc_retention") == "on" else 1.0
    return time * {"1": 1.05, "2": 2.4}.get(chosen.get("dataloader_workers", "0"), 1.0)


def searched(script: Script, budget_s: float = 200.0, offer: Offer = OFFER) -> Session:
    """The session of a whole tune on the script."""
    session = make_session(budget_s=budget_s)
    lab, _ = make_lab(script, session)
    tune(lab, offer)
    assert not script.alive
    return session


def chosen(session: Session) -> Settings:
    [decision] = [one for one in session.decisions if one.action == "chosen"]
    return decision.settings


def test_the_search_finds_what_only_helps_in_company_and_leaves_what_adds_nothing() -> None:
    session = searched(Script(step_s=step_s))
    assert chosen(session) == {
        "amp": "bf16",
        "batch_gather": "on",
        "malloc_retention": "on",
        "optimizer_kernel": "fused",
    }


def test_the_winner_is_confirmed_in_launches_of_its_own() -> None:
    session = searched(Script(step_s=step_s))
    winner = session.variants.index(chosen(session))
    confirming = [launch for launch in session.launches if launch.stage == "confirm"]
    assert {launch.variant for launch in confirming} == {0, winner}
    assert len({launch.generation for launch in confirming if launch.variant == winner}) >= 4
    searching = {launch.launch for launch in session.launches if launch.stage != "confirm"}
    assert not searching & {launch.launch for launch in confirming}


def test_what_hurts_badly_is_not_tried_again() -> None:
    script = Script(step_s=step_s)
    searched(script)
    assert sum(one.get("dataloader_workers") == "2" for one in script.started) == 1


def test_every_decision_has_a_reason() -> None:
    session = searched(Script(step_s=step_s))
    assert all(decision.reason for decision in session.decisions)
    adopted = [decision.settings for decision in session.decisions if decision.action == "adopted"]
    assert {"batch_gather": "on"} in adopted
    assert {"matmul_precision": "medium"} in [one.settings for one in session.decisions if one.action == "dropped"]


def test_nothing_better_is_chosen_where_nothing_is() -> None:
    session = searched(Script(step_s=lambda chosen: 0.01))
    assert chosen(session) == {}
    assert not [launch for launch in session.launches if launch.stage == "confirm"]


def test_a_failing_setting_does_not_stop_the_search() -> None:
    failures = {("amp=bf16", messages.Warm): LaunchFailed("training", "the loss became nan")}
    session = searched(Script(step_s=step_s, failures=failures))
    assert chosen(session) == {
        "malloc_retention": "on",
        "matmul_precision": "medium",
        "optimizer_kernel": "fused",
    }


def test_numerics_that_train_differently_are_taken_out() -> None:
    script = Script(step_s=step_s, loss=lambda one, seed: seed * 0.01 + (1.0 if one.get("amp") == "bf16" else 0.0))
    session = searched(script)
    assert "amp" not in chosen(session)
    [dropped] = [one for one in session.decisions if one.stage == "loss parity"]
    assert "does not train the same" in dropped.reason


def test_losses_are_not_compared_where_numerics_stay() -> None:
    offer = Offer(values={"optimizer_kernel": ["fused"]}, defaults=OFFER.defaults, numerics=OFFER.numerics)
    session = searched(Script(step_s=step_s), offer=offer)
    assert chosen(session) == {"optimizer_kernel": "fused"}
    assert not session.training_runs


def test_an_interrupt_keeps_what_was_measured_and_decided() -> None:
    script = Script()

    def interrupted(one: Settings) -> float:
        if script.now_s > 60:
            raise KeyboardInterrupt
        return step_s(one)

    script.step_s = interrupted
    session = make_session(budget_s=200)
    lab, _ = make_lab(script, session)
    with pytest.raises(KeyboardInterrupt):
        tune(lab, OFFER)
    assert session.blocks
    assert not script.alive


def test_what_does_not_fit_into_the_time_is_listed_as_untested() -> None:
    script = Script(step_s=step_s, start_s=5.0)
    session = searched(script, budget_s=40)
    assert [one for one in session.decisions if one.action == "untested"]


# ----------------------------------------------------------------------------------------------------- pure parts

CHANGES = st.sampled_from([(name, value) for name, values in OFFER.values.items() for value in values])
SETTINGS = st.lists(CHANGES, max_size=4).map(dict)


@given(SETTINGS, CHANGES)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_a_change_and_its_undoing_cancel(given: Mapping[str, str], change: tuple[str, str]) -> None:
    name, value = change
    changed = with_change(dict(given), change, OFFER.defaults)
    assert changed[name] == value
    undone = with_change(changed, (name, given.get(name, OFFER.defaults[name])), OFFER.defaults)
    assert undone == dict(given)


@given(SETTINGS)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_neighbours_differ_by_one_scenario(incumbent: Mapping[str, str]) -> None:
    for change in neighbours(dict(incumbent), OFFER, Known(OFFER.defaults)):
        other = with_change(dict(incumbent), change, OFFER.defaults)
        assert len(set(other.items()) ^ set(incumbent.items())) in (1, 2)


def test_of_two_helpful_values_the_better_is_adopted() -> None:
    effects = {("optimizer_kernel", "foreach"): -0.1, ("optimizer_kernel", "fused"): -0.3, ("amp", "bf16"): -0.5}
    assert adopt({}, effects, list(effects), OFFER) == {"amp": "bf16", "optimizer_kernel": "fused"}


def test_what_is_minor_beside_the_best_waits() -> None:
    effects = {("amp", "bf16"): -0.5, ("malloc_retention", "on"): -0.02}
    assert adopt({}, effects, list(effects), OFFER) == {"amp": "bf16"}
    assert adopt({"amp": "bf16"}, effects, [("malloc_retention", "on")], OFFER) == {
        "amp": "bf16",
        "malloc_retention": "on",
    }


def test_the_most_promising_neighbours_come_first() -> None:
    known = Known(OFFER.defaults)
    for change, effect in [
        (("amp", "bf16"), -0.5),
        (("optimizer_kernel", "foreach"), -0.1),
        (("optimizer_kernel", "fused"), -0.3),
        (("malloc_retention", "on"), -0.05),
        (("dataloader_workers", "1"), 0.05),
        (("dataloader_workers", "2"), 0.1),
    ]:
        known.learn({}, change, effect)
    known.hopeless.add(("matmul_precision", "medium"))
    assert neighbours({"amp": "bf16", "optimizer_kernel": "fused"}, OFFER, known) == [
        ("malloc_retention", "on"),
        ("batch_gather", "on"),
        ("dataloader_workers", "1"),
        ("dataloader_workers", "2"),
        ("optimizer_kernel", "foreach"),
        ("optimizer_kernel", "for-loop"),
        ("amp", "off"),
    ]


def test_what_a_removal_shows_is_known_of_the_setting() -> None:
    known = Known(OFFER.defaults)
    known.learn({"amp": "bf16"}, ("amp", "off"), 0.4)
    assert known.expected({}, ("amp", "bf16")) == pytest.approx(-0.4)
    assert known.expected({"amp": "bf16"}, ("amp", "off")) == pytest.approx(0.4)


def test_what_is_lost_alone_is_not_tried_in_company() -> None:
    script = Script(
        step_s=step_s, failures={("matmul_precision=medium", messages.Prove): LaunchFailed("effect", "nothing changed")}
    )
    searched(script)
    assert sum("matmul_precision" in one for one in script.started) == 1


def test_only_one_worthless_setting_goes_at_a_time() -> None:
    incumbent = {"amp": "bf16", "matmul_precision": "medium"}
    effects = {("amp", "off"): 0.004, ("matmul_precision", "highest"): 0.001}
    assert least_valuable(incumbent, effects, OFFER) == ("matmul_precision", "highest")
    assert least_valuable(incumbent, dict.fromkeys(effects, 0.2), OFFER) is None


def test_the_race_drops_a_loser_only_when_sure() -> None:
    race = Race(0)
    for _ in range(5):
        assert set(race.add({0: 1.0, 1: 1.05})) == {0, 1}
    for _ in range(5):
        staying = race.add({0: 1.0, 1: 1.05})
    assert set(staying) == {0}
    assert race.is_slower(1)
    assert not race.is_promising(1)


def test_the_race_keeps_what_differs_by_less_than_is_worthwhile() -> None:
    race = Race(0)
    for _ in range(200):
        assert set(race.add({0: 1.0, 1: 1.005})) == {0, 1}


def test_parity_steps_fit_the_time_and_its_bounds() -> None:
    session = make_session()
    lab, _ = make_lab(Script(), session)
    lab.generation("measure", [], budget_s=1, rounds=2)
    assert parity_steps(session.blocks, 10.0) == 100  # 10 s for 5 seeds of two trainings at 10 ms
    assert parity_steps(session.blocks, 0.1) == 20
    assert parity_steps(session.blocks, 1e6) == 1000
