"""The first look at what is trained and at the machine, and the lab: where workloads and scripts part."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import split

from msgspec.structs import replace

from perftool import scenario
from perftool.errors import BadInput
from perftool.jobs.front import Front
from perftool.measure import scripted as scripts
from perftool.measure import survey as workloads
from perftool.measure.footprint import Footprint
from perftool.measure.lab import Lab, Watcher
from perftool.measure.ledger import Ledger
from perftool.measure.messages import Described
from perftool.measure.scripted import Sandboxes
from perftool.probes.machine import read_fitness
from perftool.records import Fitness, Machine, Side
from perftool.scenario import Context, ScenarioError, Scenarios, discover
from perftool.store import measuring_lock
from perftool.target import Script, Target, reference_of
from perftool.trees import Tree
from perftool.vary import scenarios_of
from perftool.workload import check_reference

FITNESS_WINDOW_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found.

    footprint: what a launch takes of the memory. fitness: None where the machine was not watched.
    """

    described: Described
    footprint: Footprint
    fitness: Fitness | None

    @property
    def context(self) -> Context:
        return Context(machine=self.described.machine, workload=self.described.workload)


def check_target(target: Target) -> None:
    """Raise for what leads nowhere, before anybody waits for it: WorkloadError, or BadInput for a command."""
    if isinstance(target, str):
        check_reference(target)
    elif not target.command:
        raise BadInput("there is no command after --; write for example: -- python train.py")
    elif shutil.which(target.command[0]) is None:
        raise BadInput(
            f"there is no program {target.command[0]}; after -- comes a command as a shell takes it, such as "
            "python train.py"
        )


def offered(target: Target, files: Sequence[Path]) -> Scenarios:
    """All scenarios by name, the script's own options among them. Raises ScenarioError."""
    found = discover(list(files))
    varied = scenarios_of(target) if isinstance(target, Script) else {}
    for name in varied.keys() & found.keys():
        raise BadInput(f"--vary {name}: there is a scenario of that name; vary it as -s {name}=VALUE does")
    return {**found, **varied}


def looked(
    target: Target,
    device: str,
    seed: int,
    budget_s: float,
    front: Front,
    sandboxes: Sandboxes,
    lock: ExitStack | None = None,
) -> Look:
    """Build what is trained for the first time, whose errors are the user's to mend. `lock` as for `looking`."""
    with looking(device, front, lock) as (watcher, fitness):
        watcher.update(f"building {reference_of(target)}", 0.0, 0.0)
        described, footprint = _survey(target, device, seed, budget_s, sandboxes)
        return Look(described=described, footprint=footprint, fitness=of_device(fitness, described.machine))


def check_names(names: Iterable[str], scenarios: Scenarios, target: Target) -> None:
    """Raise ScenarioError, with the remedy, for the first name that is no setting of the target."""
    unknown = [name for name in names if name not in scenarios]
    if unknown and isinstance(target, Script):
        [name, *_] = unknown
        raise ScenarioError(
            f"there is no setting '{name}' of this command; make it one by --vary '{name}=VALUE', or name one of "
            f"{', '.join(scenarios)}"
        )
    scenario.check_names(unknown, scenarios)


@contextmanager
def looking(device: str, front: Front, lock: ExitStack | None) -> Iterator[tuple[Watcher, Fitness | None]]:
    """Where something is built for the first time, with what else the machine was doing before.

    lock: gets the measuring lock before the machine is looked at, so that the memory that another perftool holds while
        it measures is not taken for used, nor its measurements are disturbed. Without it nobody measures, and the
        machine is not watched.
    """
    try:
        with front.watching() as watcher:
            fitness = None
            if lock is not None:
                lock.enter_context(measuring_lock(front.say))
                watcher.update("looking at the machine", 0.0, 0.0)
                fitness = read_fitness(FITNESS_WINDOW_S, device)
            yield watcher, fitness
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted before anything was measured") from error


def of_device(fitness: Fitness | None, machine: Machine) -> Fitness | None:
    """Without the GPU where "auto" has turned out to be the CPU: only a worker knows whether torch can use a GPU."""
    return fitness if fitness is None or machine.device != "cpu" else replace(fitness, device=None)


# ------------------------------------------------------------------------------------------------------- two drivers


def _survey(
    target: Target, device: str, seed: int, budget_s: float, sandboxes: Sandboxes
) -> tuple[Described, Footprint]:
    if isinstance(target, str):
        return workloads.survey(target, device, seed, budget_s)
    return scripts.survey(target, device, seed, budget_s, sandboxes)


def side_surveyed(
    target: Target, device: str, seed: int, sandboxes: Sandboxes, side: Side, tree: Tree | None
) -> tuple[Described, Footprint]:
    """One side of a check: its own files, with its own command where the target is a script."""
    if isinstance(target, str):
        return workloads.survey(side.reference, device, seed, tree=tree)
    assert side.folder is not None
    moved = Script(command=tuple(split(side.reference)), folder=side.folder, vary=target.vary)
    return _survey(moved, device, seed, workloads.SURVEY_LIMIT_S, sandboxes)


def opened(
    target: Target,
    ledger: Ledger,
    scenarios: Scenarios,
    *,
    scenario_files: Sequence[Path],
    footprint: Footprint,
    watcher: Watcher,
    sandboxes: Sandboxes,
) -> AbstractContextManager[Lab]:
    """The lab of a session, whose launches are real processes."""
    open_lab = (
        workloads.open_lab if isinstance(target, str) else partial(scripts.open_lab, script=target, sandboxes=sandboxes)
    )
    return open_lab(ledger, scenarios, scenario_files=scenario_files, footprint=footprint, watcher=watcher)
