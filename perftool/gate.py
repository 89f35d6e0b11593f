"""The regression check: two revisions of a training in turns, and fresh launches with twice the pairs if they differ.

What that says is decided in `analysis/gate.py` from the session alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import reduce

from msgspec.structs import replace

from perftool.analysis.baseline import unlike
from perftool.analysis.gate import TIMES_THE_PAIRS, all_decided, first_look, is_check, suspects
from perftool.analysis.verdict import FULL_LOOK, LOOKS
from perftool.measure import messages
from perftool.measure.aside import count
from perftool.measure.calibration import CALIBRATION
from perftool.measure.footprint import Footprint
from perftool.measure.lab import BaselineFailed, Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.repeat import GENERATION_ROUNDS, measure_repeatedly
from perftool.measure.rounds import generation
from perftool.measure.running import tree_of
from perftool.measure.survey import UnusableError
from perftool.measure.worktree import WORKING_TREE
from perftool.records import CONFIRM, MEASURE, Comparison, Fitness, Session, Settings, Side, StoredBaseline
from perftool.scenario import Context, ScenarioError, Scenarios, check_settings
from perftool.trees import Tree


def beside_calibration(reference: str) -> list[Side]:
    """The workload as it is, and the kernels that a stored baseline is measured beside."""
    return [
        Side(name="calibration kernels", reference=CALIBRATION, settings={}),
        Side(name=WORKING_TREE, reference=reference, settings={}),
    ]


def described(
    sides: Sequence[Side], survey: Callable[[Side, Tree | None], tuple[messages.Described, Footprint]]
) -> tuple[list[messages.Described], Footprint]:
    """What each side is, and the memory that a launch of either takes, by a survey of each.

    Raises UnusableError, which names the side.
    """
    found: list[messages.Described] = []
    footprints: list[Footprint] = []
    for number, side in enumerate(sides):
        try:
            one, footprint = survey(side, tree_of(sides, number))
        except UnusableError as error:
            raise UnusableError(f"{side.name}: {error}") from error
        except BaselineFailed as error:
            told = f"{side.name}: {error}"
            if side.root is not None and error.kind == "training":  # a broken revision is the user's to mend
                raise UnusableError(told) from error
            raise BaselineFailed(told, error.kind) from error
        found.append(one)
        footprints.append(footprint)
    return found, reduce(Footprint.larger, footprints)


def new_check(
    sides: Sequence[Side],
    found: Sequence[messages.Described],
    scenarios: Scenarios,
    *,
    reference: str,
    arguments: Sequence[str],
    settings: Settings,
    seed: int,
    budget_s: float,
    expected: StoredBaseline | None = None,
    fitness: Fitness | None = None,
    scenario_files: Sequence[str] = (),
) -> Session:
    """An empty session of two sides, each with the settings that its workload has, moved by `settings`.

    reference: of the workload, as the user gave it. expected: what was stored, for sides beside calibration kernels.
    Raises ScenarioError for a setting that cannot be had, or is not the stored one.
    """
    placed: list[Side] = []
    effective: list[Settings] = []
    for side, told in zip(sides, found, strict=True):
        if side.reference == CALIBRATION:
            placed.append(side)
            effective.append({})
            continue
        context = Context(machine=told.machine, workload=told.workload)
        own = {**told.workload.settings, **settings}
        check_settings(own, scenarios, context)
        commit, dirty = (side.commit, side.dirty) if side.root else (told.machine.git_commit, told.machine.git_dirty)
        placed.append(replace(side, settings=own, commit=commit, dirty=dirty))
        effective.append({name: scenario.default(context) for name, scenario in scenarios.items()} | own)
    if expected is not None and expected.settings != placed[1].settings:
        there, here = (
            ", ".join(f"{name}={value}" for name, value in one.items()) or "none"
            for one in (expected.settings, placed[1].settings)
        )
        raise ScenarioError(f"--baseline: it was stored with other settings ({there}) than there are now ({here})")
    against, now = effective
    warnings = [
        f"the {what} is {one} at {sides[0].name} and {other} in the {sides[1].name}, so steps differ in what they do"
        for what, one, other in (
            ("batch size", found[0].workload.batch_size, found[1].workload.batch_size),
            ("optimizer", found[0].workload.optimizer, found[1].workload.optimizer),
        )
        if one != other and sides[0].root is not None
    ]
    return Session(
        command="check",
        arguments=list(arguments),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        budget_s=(1 + TIMES_THE_PAIRS) * budget_s,
        machine=found[1].machine,
        workload=replace(found[1].workload, reference=reference),
        scenario_changes={name: scenario.changes for name, scenario in scenarios.items()},
        defaults=against,
        baseline=placed[0].settings,
        fitness=fitness,
        first_step_ns=_slowest_step_ns(sides, found),
        scenario_files=list(scenario_files),
        sides=placed,
        expected=expected,
        variants=[{}, {name: value for name, value in now.items() if against.get(name, value) != value}],
        warnings=warnings,
    )


def _slowest_step_ns(sides: Sequence[Side], found: Sequence[messages.Described]) -> int | None:
    """Of the trainings, by which both are planned; calibration kernels are none."""
    steps = [told.step_ns for side, told in zip(sides, found, strict=True) if side.reference != CALIBRATION]
    return max((step_ns for step_ns in steps if step_ns), default=None)


def check(lab: Lab) -> None:
    """Measure both sides until each metric has a verdict or the budget of the first look is spent, and confirm.

    Raises BaselineFailed, which names the side, as soon as one of the two cannot be measured.
    """
    _count_both(lab)
    try:
        _measure_both(lab)
    except BaselineFailed as failed:
        raise BaselineFailed(f"{lab.session.sides[0].name}: {failed}", failed.kind) from failed
    if lab.is_over:
        lost = lab.lost[1]
        raise BaselineFailed(f"{lab.session.sides[1].name}: {lost.reason}", lost.kind)


def _count_both(lab: Lab) -> None:
    """What a step does on each side, after the same number of steps, so that both count the same batches."""
    expected = lab.session.expected
    calls = expected.counters.calls if expected is not None and expected.counters is not None else None
    for number, side in enumerate(lab.session.sides):
        if side.reference == CALIBRATION:
            continue
        try:
            count(lab, number, calls)
        except LaunchFailed as failed:
            raise BaselineFailed(f"{side.name}: {failed.reason}", failed.kind) from failed


def _measure_both(lab: Lab) -> None:
    """The first look, then what it asks for. Ends early where side 1 is lost; raises BaselineFailed for side 0."""
    session = lab.session  # for what does not grow
    if session.expected is not None and unlike(session.expected, session.machine) is not None:
        return  # its times would be measured only to be refused
    looks: dict[int, dict[str, Comparison]] = {}

    def looked() -> dict[str, Comparison]:
        """Comparing takes a moment, so the same launches are compared once."""
        launches = len(lab.session.launches)
        if launches not in looks:
            looks[launches] = first_look(lab.session)
        return looks[launches]

    def decided() -> bool:
        """What is stored for later has nothing to decide by: the more launches, the better."""
        return is_check(session) and all_decided(looked())

    budget_s = session.budget_s / (1 + TIMES_THE_PAIRS)
    # What is stored needs launches more than it needs blocks: it gets the most from the start.
    generations = FULL_LOOK if is_check(session) else max(LOOKS)
    done = measure_repeatedly(lab, MEASURE, [1], budget_s=budget_s, decided=decided, first_look=generations)
    if not lab.is_over and is_check(session) and suspects(looked()):
        _confirm(lab, TIMES_THE_PAIRS * done, lab.spent_s / done)


def _confirm(lab: Lab, generations: int, look_s: float) -> None:
    for to_come in range(generations, 0, -1):
        lab.launches_to_come = 2 * to_come
        lab.planned_s = look_s * to_come
        generation(lab, CONFIRM, [1], budget_s=lab.left_s / to_come, rounds=GENERATION_ROUNDS)
        if lab.is_over:
            return
