from __future__ import annotations

from perftool.measure import messages
from perftool.measure.explain import ROUNDS_LEAST, explain
from perftool.measure.launch import LaunchFailed
from perftool.records import EXPLAIN, Block, Limits, WatchedBlock
from tests.measure.fakes import FIT, PARTS, Script, make_lab, make_session


def test_one_launch_is_watched_beside_plain_blocks_for_so_long() -> None:
    script = Script(step_s=lambda _: 0.010)
    session = make_session(baseline={"amp": "bf16"})
    lab, appended = make_lab(script, session)
    explain(lab, 5.0)
    assert script.started == [{"amp": "bf16"}]
    assert not script.alive, "nothing is left behind"
    [launch] = lab.session.launches
    assert (launch.stage, launch.status, launch.variant) == (EXPLAIN, "measured", 0)
    watched, plain = lab.session.watched_blocks, lab.session.blocks
    assert len(watched) == len(plain) > ROUNDS_LEAST
    assert [one.round for one in watched] == [one.round for one in plain], "side by side"
    assert 4.5 <= sum(sum(block.step_ns) for block in watched) / 1e9 + sum(block.wall_ns for block in plain) / 1e9 < 6.0
    kinds = [type(record) for record in appended]
    assert kinds.count(Block) == kinds.count(WatchedBlock) == len(watched), "on disk as it comes"
    assert Limits in kinds
    assert lab.session.limits is not None
    assert (lab.session.memory_parts, lab.session.batch_fit) == (PARTS, FIT)
    assert [one.steps for one in lab.session.memory_samples] == [len(one.step_ns) for one in watched]


def test_slow_steps_are_watched_all_the_same() -> None:
    session = make_session()
    lab, _ = make_lab(Script(step_s=lambda _: 3.0), session)
    explain(lab, 1.0)
    assert [len(one.step_ns) for one in lab.session.watched_blocks] == [1] * ROUNDS_LEAST


def test_very_short_steps_do_not_fill_the_disk() -> None:
    session = make_session()
    lab, _ = make_lab(Script(step_s=lambda _: 0.000_02), session)
    explain(lab, 1e6)
    assert 20_000 <= sum(len(one.step_ns) for one in lab.session.watched_blocks) <= 22_000


def test_a_failure_leaves_what_came_before_and_a_warning() -> None:
    failing = {("amp=bf16", messages.Limit): LaunchFailed("memory", "out of memory")}
    session = make_session(baseline={"amp": "bf16"})
    lab, _ = make_lab(Script(failures=failing), session)
    explain(lab, 2.0)
    assert lab.session.watched_blocks
    assert (lab.session.memory_parts, lab.session.limits) == (PARTS, None)
    assert lab.session.launches[-1].status == "measured", "what it measured counts"
    assert lab.session.warnings == ["not all could be explained: out of memory"]

    never_started = {("amp=bf16", messages.Start): LaunchFailed("died", "its process died")}
    session = make_session(baseline={"amp": "bf16"})
    lab, _ = make_lab(Script(failures=never_started), session)
    explain(lab, 2.0)
    assert not lab.session.watched_blocks
    assert (lab.session.launches[-1].status, lab.session.launches[-1].reason) == ("failed", "its process died")
    assert lab.session.warnings == ["not all could be explained: its process died"]
