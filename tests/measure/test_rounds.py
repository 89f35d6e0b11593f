"""Generations on scripted launches: who runs when, what is kept, and what happens to those that fail."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
from msgspec.structs import replace

from perftool.measure import messages
from perftool.measure.aside import count, train_runs
from perftool.measure.lab import BaselineFailed
from perftool.measure.launch import LaunchFailed
from perftool.measure.repeat import measure_repeatedly
from perftool.measure.rounds import generation
from perftool.records import Launch, Side, WallTime
from perftool.store import NewVariant
from tests.measure.fakes import Script, ScriptedLaunch, make_lab, make_session


def test_a_generation_keeps_one_block_per_launch_and_round() -> None:
    session = make_session()
    lab, appended = make_lab(Script(), session)
    faster = lab.variant({"amp": "bf16"})
    generation(lab, "measure", [faster], budget_s=10, rounds=7)
    assert Counter(block.round for block in lab.session.blocks) == dict.fromkeys(range(7), 2)
    assert [launch.variant for launch in lab.session.launches] == [0, faster]
    assert appended[0] == session
    assert [type(one) for one in appended[1:2]] == [NewVariant]
    assert appended[2:] == [*lab.session.blocks, *lab.session.launches, lab.session.wall]


def test_the_order_within_rounds_is_drawn() -> None:
    script = Script()
    lab, _ = make_lab(script, make_session())
    generation(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=100, rounds=40)
    first = [launch for (_, launch) in script.ran[::2]]
    assert 8 < first.count(0) < 32
    assert {a == b for a, b in pairwise(first)} == {True, False}


def test_the_same_seed_draws_the_same_turns() -> None:
    orders = []
    for _ in range(2):
        script = Script()
        lab, _ = make_lab(script, make_session())
        generation(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=100, rounds=20)
        orders.append(script.ran)
    assert orders[0] == orders[1]


def test_a_block_is_about_thirty_milliseconds_and_at_least_a_step() -> None:
    session = make_session()
    script = Script(step_s=lambda settings: 2.0 if settings.get("amp") == "slow" else 0.001)
    lab, _ = make_lab(script, session)
    generation(lab, "measure", [lab.variant({"amp": "slow"})], budget_s=100, rounds=1)
    assert sorted(block.steps for block in lab.session.blocks) == [1, 30]


def test_rounds_end_when_the_budget_is_spent() -> None:
    session = make_session(budget_s=1.0)
    lab, _ = make_lab(Script(), session)
    generation(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=1.0, rounds=1000)
    # A round is two blocks of three steps and one dropped, 10 ms each: 80 ms.
    assert max(block.round for block in lab.session.blocks) + 1 == 13
    assert lab.spent_s == pytest.approx(13 * 0.08)


def test_a_block_has_time_for_a_compilation_within_it() -> None:
    script = Script(step_s=lambda settings: 30.0 if settings else 0.001)
    lab, _ = make_lab(script, make_session(budget_s=90.0))
    generation(lab, "measure", [lab.variant({"amp": "slow"})], budget_s=90, rounds=1)
    short, long = sorted(limit_s for kind, limit_s in script.limits if kind is messages.Run)
    assert short == lab.start_limit_s == 90.0
    assert long == 20 * (30.0 + 30.0)  # one step dropped, one measured


def test_a_launch_that_dies_costs_only_its_variant() -> None:
    session = make_session()
    script = Script(failures={("amp=bf16", messages.Run): LaunchFailed("died", "its process died by SIGSEGV")})
    lab, _ = make_lab(script, session)
    dying, other = lab.variant({"amp": "bf16"}), lab.variant({"threads": "1"})
    generation(lab, "measure", [dying, other], budget_s=10, rounds=5)
    generation(lab, "measure", [dying, other], budget_s=10, rounds=5)
    failed = [launch for launch in lab.session.launches if launch.variant == dying]
    assert [(launch.status, launch.reason) for launch in failed] == [("failed", "its process died by SIGSEGV")]
    assert len([block for block in lab.session.blocks if block.launch == 2]) == 5
    assert not script.alive


@pytest.mark.parametrize(
    ("request_kind", "failure", "status", "reason"),
    [
        (
            messages.Start,
            LaunchFailed("time", "did not answer"),
            "skipped",
            "start-up took too long (more than 60 s)",
        ),
        (messages.Start, LaunchFailed("setting", "cannot be had with that"), "skipped", "cannot be had with that"),
        (messages.Start, LaunchFailed("memory", "out of memory"), "failed", "out of memory"),
        (messages.Warm, LaunchFailed("training", "the loss became nan"), "failed", "the loss became nan"),
        (messages.Run, LaunchFailed("time", "did not answer within 30 s"), "failed", "did not answer within 30 s"),
    ],
)
def test_how_a_failure_is_called(request_kind: type, failure: LaunchFailed, status: str, reason: str) -> None:
    session = make_session()
    lab, _ = make_lab(Script(failures={("amp=bf16", request_kind): failure}), session)
    variant = lab.variant({"amp": "bf16"})
    generation(lab, "measure", [variant], budget_s=10, rounds=2)
    assert lab.lost[variant][:2] == (status, reason)


def test_what_did_not_take_effect_is_never_timed() -> None:
    session = make_session()
    lab, _ = make_lab(Script(engaged=lambda settings: not settings), session)
    variant = lab.variant({"torch_compile": "default"})
    generation(lab, "measure", [variant], budget_s=10, rounds=3)
    assert lab.lost[variant] == ("skipped", "did not take effect: scripted", "effect")
    assert {block.launch for block in lab.session.blocks} == {0}


def test_a_failing_baseline_ends_the_generation_and_leaves_nothing() -> None:
    session = make_session(baseline={"amp": "bf16"})
    script = Script(failures={("amp=bf16", messages.Warm): LaunchFailed("training", "the loss became nan")})
    lab, _ = make_lab(script, session)
    with pytest.raises(BaselineFailed, match="the loss became nan"):
        generation(lab, "measure", [lab.variant({"threads": "1"})], budget_s=10, rounds=3)
    assert not script.alive


def test_an_interrupt_keeps_the_blocks_and_leaves_nothing() -> None:
    session = make_session()
    script = Script()

    def step_s(settings: dict[str, str]) -> float:
        if script.now_s > 4:
            raise KeyboardInterrupt
        return 0.01

    script.step_s = step_s
    lab, appended = make_lab(script, session)
    with pytest.raises(KeyboardInterrupt):
        generation(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=100, rounds=1000)
    assert not script.alive
    assert lab.session.blocks
    assert [type(record) for record in appended[-3:]] == [Launch, Launch, WallTime]
    # Whole rounds only.
    assert set(Counter(block.round for block in lab.session.blocks).values()) == {2}


def test_what_measuring_took_and_what_of() -> None:
    lab, _ = make_lab(Script(start_s=2.0), make_session())
    faster = lab.variant({"amp": "bf16"})
    for _ in range(2):
        generation(lab, "measure", [faster], budget_s=10, rounds=7)
    wall = lab.session.wall
    assert wall is not None
    assert wall.starting_s == pytest.approx(2 * 2 * 2.0)
    assert wall.turns_s == pytest.approx(lab.spent_s)
    assert wall.starting_s + wall.warming_s + wall.turns_s == pytest.approx(wall.total_s) == pytest.approx(lab.clock())
    again, _ = make_lab(Script(start_s=2.0), lab.session)
    generation(again, "measure", [faster], budget_s=10, rounds=7)
    assert again.session.wall is not None
    assert again.session.wall.total_s == pytest.approx(1.5 * wall.total_s)


def test_launches_that_do_not_fit_go_in_groups_each_with_a_baseline() -> None:
    session = make_session(budget_s=100)
    script = Script()
    lab, _ = make_lab(script, session, live_limit=3)
    variants = [lab.variant({"threads": str(number)}) for number in range(1, 6)]
    generation(lab, "measure", variants, budget_s=100, rounds=2)
    assert script.most_alive == 3
    assert [launch.variant for launch in lab.session.launches].count(0) == 3
    for number in {block.round for block in lab.session.blocks}:
        launches = {block.launch for block in lab.session.blocks if block.round == number}
        assert 0 in {launch.variant for launch in lab.session.launches if launch.launch in launches}


def test_what_times_kernels_has_the_machine_to_itself_while_it_starts() -> None:
    script = Script()
    lab, _ = make_lab(script, make_session(), tunes_kernels=lambda settings: "torch_compile" in settings)
    starts: list[tuple[bool, bool]] = []  # whether it times kernels, and whether it started beside others

    class Noting(ScriptedLaunch):
        def answer(self, request: messages.Ask[Any]) -> Any:
            if isinstance(request, messages.Start):
                starts.append(("torch_compile" in self.spec.settings, current_thread() is not main_thread()))
            return super().answer(request)

    lab.start = lambda spec, _: Noting(script, spec)
    variants = [lab.variant(one) for one in ({"torch_compile": "default"}, {"amp": "bf16"}, {"torch_compile": "max"})]
    generation(lab, "alone", variants, budget_s=100, rounds=2)
    assert starts == [(False, True)] * 2 + [(True, False)] * 2


def test_keep_drops_a_variant_for_the_rest_of_the_generation() -> None:
    session = make_session()
    lab, _ = make_lab(Script(), session)
    first, second = lab.variant({"amp": "bf16"}), lab.variant({"threads": "1"})
    generation(lab, "alone", [first, second], budget_s=100, rounds=10, keep=lambda times: [second])
    blocks = Counter(block.launch for block in lab.session.blocks)
    assert blocks == {0: 10, 1: 1, 2: 10}


def test_long_blocks_join_fewer_rounds_where_time_is_to_be_even() -> None:
    """Each of the slow variant's steps takes ten of the others' blocks."""
    script = Script(step_s=lambda one: 0.3 if one.get("threads") == "1" else 0.01)
    session = make_session()
    lab, _ = make_lab(script, session)
    variants = [lab.variant(one) for one in ({"threads": "1"}, {"amp": "bf16"}, {"batch_gather": "on"})]
    generation(lab, "alone", variants, budget_s=100, rounds=30, even_time=True, keep=lambda times: list(times))
    blocks = [sum(block.launch == number for block in lab.session.blocks) for number in range(4)]
    assert blocks[0] == blocks[2] == blocks[3] == 30
    assert 1 <= blocks[1] <= 3
    rounds = {block.round for block in lab.session.blocks if block.launch == 0}
    assert all(block.round in rounds for block in lab.session.blocks)


def test_settings_are_the_baselines_with_the_variants_on_top() -> None:
    session = make_session(baseline={"amp": "bf16", "threads": "2"})
    script = Script()
    lab, _ = make_lab(script, session)
    generation(lab, "measure", [lab.variant({"threads": "1"})], budget_s=1, rounds=1)
    assert script.started == [{"amp": "bf16", "threads": "2"}, {"amp": "bf16", "threads": "1"}]


def test_repeating_ends_at_the_first_look_that_decides() -> None:
    session = make_session(budget_s=1000)
    lab, _ = make_lab(Script(), session)
    asked: list[int] = []

    def decided() -> bool:
        asked.append(len({launch.generation for launch in lab.session.launches}))
        return len(asked) == 2

    assert measure_repeatedly(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=1000, decided=decided) == 4
    assert asked == [2, 4]


def test_repeating_spreads_a_small_budget_over_four_generations() -> None:
    session = make_session(budget_s=2)
    lab, _ = make_lab(Script(), session)
    done = measure_repeatedly(lab, "measure", [lab.variant({"amp": "bf16"})], budget_s=2, decided=lambda: False)
    assert done == 4
    launch_of = {launch.launch: launch.generation for launch in lab.session.launches}
    rounds = Counter(launch_of[block.launch] for block in lab.session.blocks)
    assert max(rounds.values()) - min(rounds.values()) <= 4


def test_progress_tells_a_shrinking_time_left() -> None:
    session = make_session(budget_s=2)
    lab, _ = make_lab(Script(), session)
    generation(lab, "measure", [], budget_s=2, rounds=10)
    told = lab._watcher.told  # type: ignore[attr-defined]
    left = [left_s for _, _, left_s in told]
    assert left == sorted(left, reverse=True)


def test_training_runs_are_kept_and_a_failing_one_is_a_warning() -> None:
    session = make_session()
    failure = LaunchFailed("training", "the loss became nan")
    script = Script(failures={("amp=bf16", messages.Train): failure}, loss=lambda settings, seed: 0.1 * seed)
    lab, _ = make_lab(script, session)
    train_runs(lab, [0, lab.variant({"amp": "bf16"})], range(3), 50, limit_s=10)
    assert [(run.variant, run.seed, run.loss) for run in lab.session.training_runs] == [
        (0, 0, 0.0),
        (0, 1, 0.1),
        (0, 2, 0.2),
    ]
    assert lab.session.warnings == ["the loss could not be compared: the loss became nan"]
    assert not script.alive


def test_blocks_know_their_round() -> None:
    session = make_session()
    lab, _ = make_lab(Script(), session)
    generation(lab, "measure", [], budget_s=1, rounds=2)
    generation(lab, "measure", [], budget_s=1, rounds=2)
    assert [block.round for block in lab.session.blocks] == [0, 1, 2, 3]


def test_a_launch_keeps_its_steps_per_call_and_drops_the_calls_that_its_queue_holds() -> None:
    session = make_session()
    script = Script(steps_per_call=10, queued_batches=12)
    lab, _ = make_lab(script, session)
    generation(lab, "measure", [], budget_s=1, rounds=1)
    assert [launch.steps_per_call for launch in lab.session.launches] == [10]
    assert script.dropped == {3}


def test_edits_of_a_side_while_it_is_measured_are_a_warning(tmp_path: Path) -> None:
    sides = []
    for name in ("main", "working tree"):
        root = tmp_path / name
        root.mkdir()
        (root / "train.py").write_text("old")
        sides.append(Side(name=name, reference="train.py:mine", settings={}, root=str(root), folder=str(root)))
    session = replace(make_session(), sides=sides, variants=[{}, {}])
    lab, _ = make_lab(Script(modules=["train.py"]), session)
    for variant in (0, 1):
        count(lab, variant)
    generation(lab, "measure", [1], budget_s=10, rounds=2)
    assert lab.session.warnings == []
    (tmp_path / "working tree" / "train.py").write_text("newer")
    for _ in range(2):
        generation(lab, "measure", [1], budget_s=10, rounds=2)
    [warning] = lab.session.warnings
    assert "working tree were edited while it was measured (train.py)" in warning
