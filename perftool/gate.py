"""The regression check: two revisions of a training in turns, and fresh launches with twice the pairs if they differ.

What that says is decided in `analysis/gate.py` from the session alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from perftool.analysis.baseline import unlike
from perftool.analysis.gate import TIMES_THE_PAIRS, all_decided, is_check, suspects
from perftool.analysis.verdict import LOOKS
from perftool.measure import messages
from perftool.measure.calibration import CALIBRATION
from perftool.measure.launch import LaunchFailed
from perftool.measure.repeat import GENERATION_ROUNDS, measure_repeatedly
from perftool.measure.rounds import BaselineFailed, Lab, tree_of
from perftool.measure.survey import UnusableError, survey
from perftool.measure.worktree import WORKING_TREE
from perftool.records import CONFIRM, MEASURE, Fitness, Session, Settings, Side, StoredBaseline
from perftool.scenario import Context, ScenarioError, Scenarios, check_settings


def beside_calibration(reference: str) -> list[Side]:
    """The workload as it is, and the kernels that a stored baseline is measured beside."""
    return [
        Side(name="calibration kernels", reference=CALIBRATION, settings={}),
        Side(name=WORKING_TREE, reference=reference, settings={}),
    ]


def described(sides: Sequence[Side], device: str, seed: int) -> tuple[list[messages.Described], int]:
    """What each side is, and the host memory that a launch takes. Raises UnusableError, which names the side."""
    found, most_bytes = [], 0
    for number, side in enumerate(sides):
        try:
            told, launch_bytes = survey(side.reference, device, seed, tree=tree_of(sides, number))
        except UnusableError as error:
            raise UnusableError(f"{side.name}: {error}") from error
        except BaselineFailed as error:
            raise BaselineFailed(f"{side.name}: {error}") from error
        found.append(told)
        most_bytes = max(most_bytes, launch_bytes)
    return found, most_bytes


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
        first_step_ns=found[0].step_ns,
        scenario_files=list(scenario_files),
        sides=placed,
        expected=expected,
        variants=[{}, {name: value for name, value in now.items() if against.get(name, value) != value}],
        warnings=warnings,
    )


def check(lab: Lab) -> None:
    """Measure both sides until each metric has a verdict or the budget of the first look is spent, and confirm.

    Raises BaselineFailed, also where the working tree cannot be measured.
    """
    for number, side in enumerate(lab.session.sides):
        if side.reference == CALIBRATION:
            continue
        try:
            lab.count(number)
        except LaunchFailed as failed:
            raise BaselineFailed(f"{side.name}: {failed.reason}") from failed
    expected = lab.session.expected
    if expected is not None and unlike(expected, lab.session.machine) is not None:
        return  # its times would be measured only to be refused
    budget_s = lab.session.budget_s / (1 + TIMES_THE_PAIRS)

    def decided() -> bool:
        """What is stored for later has nothing to decide by: the more launches, the better."""
        return is_check(lab.session) and all_decided(lab.session)

    # What is stored needs launches more than it needs blocks: it gets the most from the start.
    first_look = min(LOOKS) if is_check(lab.session) else max(LOOKS)
    looked = measure_repeatedly(lab, MEASURE, [1], budget_s=budget_s, decided=decided, first_look=first_look)
    if 1 not in lab.lost and is_check(lab.session) and suspects(lab.session):
        look_s = lab.spent_s / looked
        for to_come in range(TIMES_THE_PAIRS * looked, 0, -1):
            lab.launches_to_come = 2 * to_come
            lab.planned_s = look_s * to_come
            lab.generation(CONFIRM, [1], budget_s=lab.left_s / to_come, rounds=GENERATION_ROUNDS)
    if 1 in lab.lost:
        raise BaselineFailed(f"{lab.session.sides[1].name}: {lab.lost[1][1]}")
