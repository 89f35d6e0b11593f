"""Settings put on a training in this process, for those who would rather call perftool than paste its lines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from perftool.measure.devices import take_device
from perftool.measure.facts import describe_first_step
from perftool.probes.machine import describe_machine
from perftool.records import RecommendedSettings, SchemaError, Settings, from_json
from perftool.scenario import (
    Context,
    ScenarioError,
    Scenarios,
    check_settings,
    discover,
    environment_of,
    normalised,
    plan_of,
)
from perftool.workload import Loaded, Workload, load

if TYPE_CHECKING:
    from perftool.plan import Plan
    from perftool.training import Training


def apply(
    settings: Mapping[str, str | int | bool] | str | Path,
    workload: Workload | str,
    *,
    device: str = "auto",
    seed: int = 0,
    scenario_files: Sequence[str | Path] = (),
) -> Training:
    """The very training that perftool measures under these settings: `training.step(training.fetch())` is a step.

    settings: scenario name to value, or the path of a recommended.json; the workload's own settings are added.
    workload: a Workload, or what names one (`train.py:mine`).
    device: auto, cpu, cuda or cuda:N; a GPU becomes the current device.
    seed: of the initial weights and the order of the data.
    scenario_files: scenarios of your own, as for `--scenario`.

    Settings of the process (threads, precision, allocator) are in force from then on. Raises ValueError, with the
    remedy, for settings that cannot be had here or need another environment, and for a device that is not there.
    """
    chosen = _read(settings) if isinstance(settings, (str, Path)) else normalised(settings)
    scenarios = discover([Path(file) for file in scenario_files])
    loaded = load(workload) if isinstance(workload, str) else Loaded(workload=workload, reference=workload.name or "")
    measured = {**normalised(loaded.workload.settings), **chosen}
    where = take_device(device)
    check_settings(measured, scenarios, context_of(loaded, scenarios, device=where, seed=seed))
    check_environment(environment_of(measured, scenarios))
    return training_of(plan_of(loaded.workload, measured, scenarios, device=where, seed=seed))


def _read(path: str | Path) -> Settings:
    try:
        return from_json(Path(path).read_bytes(), RecommendedSettings).settings
    except (OSError, SchemaError) as error:
        raise ScenarioError(f"{path}: {error}; give the path of a recommended.json, or a mapping") from error


def context_of(loaded: Loaded, scenarios: Scenarios, *, device: str, seed: int) -> Context:
    """What scenarios are told: the machine, and the workload, built once without settings and given up again."""
    plain = training_of(plan_of(loaded.workload, {}, scenarios, device=device, seed=seed))
    facts, _ = describe_first_step(loaded, plain)
    return Context(machine=describe_machine(device), workload=facts)


def training_of(plan: Plan) -> Training:
    """What the plan describes, built."""
    from perftool.training import Training  # late: nobody needs torch who only looks

    return Training(plan)


def check_environment(needed: Mapping[str, str]) -> None:
    """Raise ScenarioError, with the command line, for variables that would have had to be set before Python started."""
    missing = [f"{name}={quote(value)}" for name, value in needed.items() if os.environ.get(name) != value]
    if missing:
        raise ScenarioError(
            f"these settings need {' '.join(missing)} in the environment before Python starts; "
            f"start with: {' '.join(missing)} python ..."
        )
