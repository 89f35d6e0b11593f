"""What is to be measured and on what, learnt in a worker process, and the lab that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from perftool.measure import messages
from perftool.measure.footprint import Footprint, footprint_of, launches_that_fit
from perftool.measure.lab import BaselineFailed, Lab, Watcher
from perftool.measure.launch import LaunchFailed, ProcessLaunch
from perftool.measure.ledger import Ledger
from perftool.probes import nvml
from perftool.records import Command, Fitness, Goal, Session, Settings
from perftool.scenario import Context, Scenarios, check_settings, cures_of, environment_of, tunes_kernels
from perftool.temporary import temporary_folder
from perftool.trees import Tree

SURVEY_LIMIT_S = 60.0  # the least that any start-up may take
PARALLEL_STARTS_MOST = 8


class UnusableError(ValueError):
    """Input that cannot be used: a workload, a setting, a device. The text says what to do."""


def survey(
    reference: str, device: str, seed: int, budget_s: float = SURVEY_LIMIT_S, tree: Tree | None = None
) -> tuple[messages.Described, Footprint]:
    """Build the workload once, do a step, and describe it and the machine; with the memory that took.

    tree: where its modules come from. What the workload prints appears on stderr here, and nowhere else. Raises
    UnusableError for a reference or a device that leads nowhere, BaselineFailed for a workload that cannot do a step.
    """
    spec = messages.LaunchSpec(
        launch=0, reference=reference, scenario_files=[], settings={}, device=device, seed=seed, tree=tree
    )
    used_bytes = nvml.used_bytes(nvml.handle_of(device))
    launch = ProcessLaunch(spec, {}, show_output=True)
    try:
        described = launch.ask(messages.Describe(), max(SURVEY_LIMIT_S, budget_s))
        taken = footprint_of(
            described.peak_host_bytes,
            described.machine,
            used_before_bytes=used_bytes,
            used_after_bytes=described.device_used_bytes,
        )
        return described, taken
    except LaunchFailed as failed:
        if failed.kind in ("reference", "device", "setting", "tree"):
            raise UnusableError(failed.reason) from failed
        raise BaselineFailed(failed.reason, failed.kind) from failed
    finally:
        launch.close()


def new_session(
    described: messages.Described,
    scenarios: Scenarios,
    *,
    command: Command,
    arguments: Sequence[str],
    settings: Settings,
    seed: int,
    budget_s: float,
    goal: Goal | None = None,
    fitness: Fitness | None = None,
    scenario_files: Sequence[Path] = (),
) -> Session:
    """An empty session whose baseline is the workload's own settings moved by `settings`.

    Raises ScenarioError for a setting that cannot be had here, whether the command line or the workload asks for it.
    """
    context = Context(machine=described.machine, workload=described.workload)
    baseline = {**described.workload.settings, **settings}
    check_settings(baseline, scenarios, context)
    return Session(
        command=command,
        arguments=list(arguments),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        budget_s=budget_s,
        machine=described.machine,
        workload=described.workload,
        scenario_changes={name: scenario.changes for name, scenario in scenarios.items()},
        codes={
            name: {
                value: scenario.lines(value, context)
                for value in {*scenario.available(context), baseline.get(name, scenario.default(context))}
            }
            for name, scenario in scenarios.items()
        },
        cures=cures_of(scenarios, context, baseline),
        fitness=fitness,
        defaults={name: scenario.default(context) for name, scenario in scenarios.items()} | baseline,
        baseline=baseline,
        goal=goal or Goal(),
        first_step_ns=described.step_ns,
        scenario_files=[str(file.resolve()) for file in scenario_files],
        variants=[{}],
    )


@contextmanager
def open_lab(
    ledger: Ledger,
    scenarios: Scenarios,
    *,
    scenario_files: Sequence[Path],
    footprint: Footprint,
    watcher: Watcher,
) -> Iterator[Lab]:
    """A lab for a session whose launches are real processes, as many at a time as the memory allows."""
    machine = ledger.session.machine
    context = Context(machine=machine, workload=ledger.session.workload)
    with temporary_folder() as caches:
        yield Lab(
            ledger,
            start=ProcessLaunch,
            environment=lambda settings: environment_of(settings, scenarios),
            scenario_files=[str(file.resolve()) for file in scenario_files],
            parallel_starts=max(1, min(machine.usable_cores, PARALLEL_STARTS_MOST)),
            live_limit=launches_that_fit(footprint, ledger),
            tunes_kernels=lambda settings: tunes_kernels(settings, scenarios, context),
            caches=caches,
            watcher=watcher,
        )
