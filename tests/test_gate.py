"""The course of a check, with scripted launches: what is measured, what is confirmed, and what is not."""

from __future__ import annotations

from typing import NoReturn

import pytest
from msgspec.structs import replace

from perftool.analysis.baseline import stored
from perftool.analysis.gate import judged
from perftool.analysis.recommend import conclude
from perftool.analysis.summary import summarise
from perftool.gate import check, described, new_check
from perftool.measure.aside import COUNTED_CALLS
from perftool.measure.calibration import CALIBRATION
from perftool.measure.lab import BaselineFailed
from perftool.measure.launch import LaunchFailed
from perftool.measure.messages import Count, Described, Run, Start
from perftool.measure.running import tree_of
from perftool.measure.survey import UnusableError
from perftool.records import CONFIRM, MEASURE, Session, Side, StoredBaseline
from perftool.report import html, markdown, terminal
from perftool.report.checks import for_later_how
from tests.measure.fakes import MACHINE, WORKLOAD, Script, make_lab

BEFORE, NOW = {"speed": "before"}, {"speed": "now"}
SIDES = [
    Side(name="main", reference="train.py:mine", settings=BEFORE, root="/a", folder="/a/sub", commit="4c1d2e3f"),
    Side(name="working tree", reference="train.py:mine", settings=NOW, root="/b", folder="/b/sub"),
]


def started(budget_s: float = 30.0) -> Session:
    """An empty check; the scripted launches tell the sides by their settings."""
    described = [Described(machine=MACHINE, workload=WORKLOAD, peak_host_bytes=None, device_used_bytes=None)] * 2
    session = new_check(
        SIDES, described, {}, reference="train.py:mine", arguments=[], settings={}, seed=0, budget_s=budget_s
    )
    return replace(session, sides=SIDES)


def stages(session: Session) -> dict[str, int]:
    """Generations by stage."""
    return {
        stage: len({one.generation for one in session.launches if one.stage == stage}) for stage in (MEASURE, CONFIRM)
    }


def test_what_does_not_differ_is_not_confirmed() -> None:
    lab, _ = make_lab(Script(), started())
    check(lab)
    assert stages(lab.session) == {MEASURE: 4, CONFIRM: 0}
    assert judged(lab.session).outcome == "passed"


def test_each_side_builds_its_own_extensions_and_keeps_them() -> None:
    script = Script()
    lab, _ = make_lab(script, started())
    check(lab)
    launched = zip(script.started, script.environments, strict=True)
    places = {(str(settings), environment["TORCH_EXTENSIONS_DIR"]) for settings, environment in launched}
    assert len(places) == len({place for _, place in places}) == 2


def test_what_differs_is_confirmed_with_twice_the_launches() -> None:
    script = Script(step_s=lambda settings: 0.011 if settings == NOW else 0.010)
    lab, _ = make_lab(script, started())
    check(lab)
    assert stages(lab.session) == {MEASURE: 4, CONFIRM: 8}
    assert judged(lab.session).outcome == "regression"
    pairs = {one.metric: one for one in judged(lab.session).metrics}["throughput"]
    assert pairs.first is not None
    assert pairs.confirmation is not None
    assert pairs.confirmation.pairs >= 2 * pairs.first.pairs


def test_counted_work_needs_no_confirmation() -> None:
    script = Script(operations=lambda settings: 51 if settings == NOW else 50)
    lab, _ = make_lab(script, started())
    check(lab)
    assert stages(lab.session)[CONFIRM] == 0
    assert judged(lab.session).outcome == "regression"


def beside_kernels(budget_s: float, expected: StoredBaseline | None = None) -> Session:
    """A check without a revision: calibration kernels and the workload."""
    sides = [Side(name="calibration kernels", reference=CALIBRATION, settings={}), replace(SIDES[1], root=None)]
    return replace(started(budget_s), sides=sides, expected=expected)


@pytest.mark.parametrize(("step_s", "budget_s"), [(0.2, 60.0), (0.01, 2.0)])
def test_what_is_stored_has_launches_enough_of_slow_steps_and_by_a_small_budget(step_s: float, budget_s: float) -> None:
    lab, _ = make_lab(Script(step_s=lambda _: step_s), beside_kernels(budget_s))
    check(lab)
    assert stages(lab.session) == {MEASURE: 8, CONFIRM: 0}
    found = stored(lab.session)
    assert found is not None
    assert len(found.metrics["throughput"].log_values) == 8
    assert for_later_how(summarise(lab.session))


def test_beside_a_baseline_of_another_machine_there_is_only_counting() -> None:
    lab, _ = make_lab(Script(), beside_kernels(30.0))
    check(lab)
    then = stored(lab.session)
    assert then is not None
    elsewhere = replace(then, machine={**then.machine, "device": "NVIDIA H100"})
    lab, _ = make_lab(Script(), beside_kernels(30.0, elsewhere))
    check(lab)
    assert not lab.session.launches
    summary = conclude(lab.session)
    assert summary.check is not None
    told = {one.metric: one.verdict for one in summary.check.metrics}
    assert told["parameters"] == "no regression"
    assert told["operations_per_step"] == told["throughput"] == "not measured"
    for page in (terminal.render(summary), markdown.render(summary), html.render(lab.session, summary)):
        assert "counted on NVIDIA H100, here on cpu" in " ".join(page.split())


def test_each_side_has_its_own_tree_and_settings() -> None:
    script = Script()
    lab, _ = make_lab(script, started())
    check(lab)
    assert script.started[:2] == [BEFORE, NOW]
    tree = tree_of(SIDES, 1)
    assert tree is not None
    assert (tree.root, tree.folder, tree.others) == ("/b", "/b/sub", ["/a"])


def test_a_side_that_fails_is_named() -> None:
    script = Script(failures={("speed=now", Start): LaunchFailed("training", "ValueError: broken")})
    lab, _ = make_lab(script, started())
    with pytest.raises(BaselineFailed, match="working tree: ValueError: broken"):
        check(lab)


@pytest.mark.parametrize("kind", ["training", "tree"])
def test_a_side_that_dies_in_a_block_ends_the_check(kind: str) -> None:
    script = Script(failures={("speed=now", Run): LaunchFailed(kind, "the loss became nan")})
    lab, _ = make_lab(script, started())
    with pytest.raises(BaselineFailed, match="working tree: the loss became nan") as failed:
        check(lab)
    assert failed.value.kind == kind
    assert stages(lab.session) == {MEASURE: 1, CONFIRM: 0}
    assert len(lab.session.blocks) <= 1  # of the other side, which may have had the first turn


def test_a_side_that_dies_in_the_confirmation_ends_it() -> None:
    confirmed: list[int] = []

    def step_s(settings: dict[str, str]) -> float:
        if settings == NOW and stages(lab.session)[MEASURE] == 4:
            confirmed.append(1)
            if len(confirmed) > 100:
                raise LaunchFailed("memory", "out of memory")
        return 0.011 if settings == NOW else 0.010

    lab, _ = make_lab(Script(step_s=step_s), started())
    with pytest.raises(BaselineFailed, match="working tree: out of memory"):
        check(lab)
    assert 1 <= stages(lab.session)[CONFIRM] < 8
    assert judged(lab.session).failed == "working tree: out of memory"


def test_the_other_side_is_named_too() -> None:
    script = Script(failures={("speed=before", Run): LaunchFailed("died", "its process ended")})
    lab, _ = make_lab(script, started())
    with pytest.raises(BaselineFailed, match="main: its process ended"):
        check(lab)


@pytest.mark.parametrize(("step_s", "calls"), [(None, COUNTED_CALLS), (0.01, COUNTED_CALLS), (9.0, 6), (100.0, 2)])
def test_slow_steps_are_counted_after_fewer_calls(step_s: float | None, calls: int) -> None:
    script = Script()
    session = started()
    lab, _ = make_lab(script, replace(session, first_step_ns=None if step_s is None else round(step_s * 1e9)))
    check(lab)
    assert [one.calls for one in lab.session.counters] == [calls, calls]
    limits = [limit_s for request, limit_s in script.limits if request is Count]
    assert all(limit_s > (calls + 2) * (step_s or 0) for limit_s in limits)


@pytest.mark.parametrize(("kind", "error"), [("training", UnusableError), ("memory", BaselineFailed)])
def test_a_broken_revision_is_bad_input(kind: str, error: type[Exception]) -> None:
    def fail(*_: object) -> NoReturn:
        raise BaselineFailed("broken", kind)

    with pytest.raises(error, match="main: broken"):
        described(SIDES, fail)
