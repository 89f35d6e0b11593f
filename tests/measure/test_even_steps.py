"""Launches of scripts: a round covers the same steps of each, and a script may be over before the rounds are."""

from __future__ import annotations

from collections import defaultdict

import pytest

from perftool.measure import messages
from perftool.measure.lab import BaselineFailed
from perftool.measure.launch import LaunchFailed
from perftool.measure.repeat import measure_repeatedly
from perftool.measure.rounds import generation
from perftool.records import Settings
from tests.measure.fakes import Script, make_lab, make_session

FAST, SLOW = {"amp": "bf16"}, {"threads": "1"}


def step_s(settings: Settings) -> float:
    return {"amp=bf16": 0.002, "threads=1": 0.200}.get("=".join(*settings.items()) if settings else "", 0.010)


def steps_of_rounds(script: Script) -> dict[int, set[range]]:
    """What the blocks of each round cover; one range where it is the same for all."""
    found = defaultdict(set)
    for (round_, _), steps in script.covered.items():
        found[round_].add(steps)
    return found


def test_a_round_covers_the_same_steps_of_every_launch() -> None:
    script = Script(step_s=step_s, queued_of=lambda settings: 4 if settings == FAST else 0)
    lab, _ = make_lab(script, make_session(budget_s=100), even_steps=True)
    variants = [lab.variant(FAST), lab.variant(SLOW)]
    generation(lab, "measure", variants, budget_s=100, rounds=6, even_time=True)
    rounds = steps_of_rounds(script)
    assert len(rounds) == 6
    assert len(script.covered) == 3 * 6, "no launch leaves a round out"
    assert all(len(covered) == 1 for covered in rounds.values())
    assert {launch.status for launch in lab.session.launches} == {"measured"}
    assert len({len(launch.warmup_step_ns) for launch in lab.session.launches}) == 1
    assert script.dropped == {5}, "what the fullest queue needs"


def test_without_even_steps_each_launch_is_where_its_own_time_led() -> None:
    script = Script(step_s=step_s)
    lab, _ = make_lab(script, make_session(budget_s=100))
    generation(lab, "measure", [lab.variant(FAST), lab.variant(SLOW)], budget_s=100, rounds=2)
    assert all(len(covered) == 3 for covered in steps_of_rounds(script).values())


@pytest.mark.parametrize(("factor", "steps"), [(0.1, 30), (1.0, 3), (100.0, 1)])
def test_a_block_is_about_thirty_milliseconds_of_the_median_launch(factor: float, steps: int) -> None:
    script = Script(step_s=lambda settings: factor * step_s(settings))
    lab, _ = make_lab(script, make_session(budget_s=1000), even_steps=True)
    generation(lab, "measure", [lab.variant(FAST), lab.variant(SLOW)], budget_s=1000, rounds=1)
    assert {len(covered) for covered in script.covered.values()} == {steps}


def test_one_that_fails_does_not_set_the_others_apart() -> None:
    failures = {("threads=1", messages.Run): LaunchFailed("died", "its process died")}
    script = Script(step_s=step_s, failures=failures)
    lab, _ = make_lab(script, make_session(budget_s=100), even_steps=True)
    slow = lab.variant(SLOW)
    generation(lab, "measure", [lab.variant(FAST), slow], budget_s=100, rounds=5)
    rounds = steps_of_rounds(script)
    assert len(script.covered) == 2 * 5
    assert all(len(covered) == 1 for covered in rounds.values())
    assert lab.lost.keys() == {slow}


# ------------------------------------------------------------------------------------------------------ its own end


def test_a_generation_ends_with_the_baselines_script_and_all_count_as_measured() -> None:
    script = Script(step_s=step_s, last_step=lambda settings: 400)
    lab, _ = make_lab(script, make_session(budget_s=100), even_steps=True)
    fast = lab.variant(FAST)
    generation(lab, "measure", [fast], budget_s=100, rounds=1000)
    assert [(one.variant, one.status, one.reason) for one in lab.session.launches] in (
        [(0, "measured", None), (fast, "measured", None)],
        [(fast, "measured", None), (0, "measured", None)],
    )
    assert all(launch.peak_host_bytes for launch in lab.session.launches), "what was last known"
    assert not lab.lost
    assert not script.alive
    covered = list(steps_of_rounds(script).values())
    assert len(covered) > 10
    assert all(len(one) == 1 for one in covered)
    assert lab.left_s > 0


def test_a_variant_whose_script_is_over_leaves_the_others_to_go_on() -> None:
    script = Script(step_s=step_s, last_step=lambda settings: 400 if settings == FAST else None)
    lab, _ = make_lab(script, make_session(budget_s=100), even_steps=True)
    fast, slow = lab.variant(FAST), lab.variant(SLOW)
    generation(lab, "measure", [fast, slow], budget_s=100, rounds=100)
    ran = {launch.variant: 0 for launch in lab.session.launches}
    variant_of = {launch.launch: launch.variant for launch in lab.session.launches}
    for block in lab.session.blocks:
        ran[variant_of[block.launch]] += 1
    assert 0 < ran[fast] < ran[slow] == ran[0]
    assert not lab.lost
    assert {launch.status for launch in lab.session.launches} == {"measured"}


def test_it_is_launched_again_in_the_next_generation() -> None:
    script = Script(step_s=step_s, last_step=lambda settings: 200)
    lab, _ = make_lab(script, make_session(budget_s=100), even_steps=True)
    done = measure_repeatedly(lab, "measure", [lab.variant(FAST)], budget_s=100, decided=lambda: False)
    assert done >= 4
    assert len(lab.session.launches) == 2 * done
    assert {launch.status for launch in lab.session.launches} == {"measured"}


def test_a_script_that_is_over_before_its_first_block_has_failed() -> None:
    script = Script(step_s=step_s, last_step=lambda settings: 20 if settings == FAST else None)
    lab, _ = make_lab(script, make_session(), even_steps=True)
    fast = lab.variant(FAST)
    generation(lab, "measure", [fast], budget_s=10, rounds=3)
    assert lab.lost[fast] == ("failed", "its script was over after 20 steps", "ended")

    script = Script(step_s=step_s, last_step=lambda settings: None if settings else 20)
    lab, _ = make_lab(script, make_session(), even_steps=True)
    with pytest.raises(BaselineFailed, match="its script was over after 20 steps") as failed:
        generation(lab, "measure", [lab.variant(FAST)], budget_s=10, rounds=3)
    assert failed.value.kind == "ended"
    assert not script.alive
