"""What jobs are told in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

from perftool.errors import BadInput
from perftool.records import Goal, Objective, RecommendedSettings, SchemaError, Settings, from_json
from perftool.scenario import ScenarioError, normalised
from perftool.target import Script, Target
from perftool.units import bytes_of
from perftool.vary import parse


def target_of(workload: str | None, command: Sequence[str] | None, vary: Sequence[str]) -> Target | None:
    """What is to be measured: a workload by its reference or a command by its words; None where neither is given.

    Raises BadInput for both, and for options to vary that no command has.
    """
    if command is None:
        if vary:
            raise BadInput("--vary is for the options of a command; give it after --, as in: -- python train.py")
        return workload
    if workload is not None:
        raise BadInput(f"there are a WORKLOAD, {workload}, and a command after --; give one of them")
    try:
        return Script(command=tuple(command), folder=os.getcwd(), vary=tuple(map(parse, vary)))
    except ScenarioError as error:
        raise BadInput(str(error)) from error


def parse_settings(given: Sequence[str]) -> Settings:
    """`NAME=VALUE` and `@FILE` as settings. Raises BadInput for anything else."""
    settings: Settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if text.startswith("@"):
            settings.update(recommended(Path(text[1:]), f"-s {text}"))
        elif equals and name and value:
            settings[name] = value
        else:
            raise BadInput(f"-s takes NAME=VALUE or @recommended.json, not '{text}'")
    return settings


def recommended(path: Path, asked: str) -> Settings:
    """The settings of a recommended.json, whatever it is of. Raises BadInput, which begins with what asked for it."""
    return read_recommended(path, asked).settings


def read_recommended(path: Path, asked: str) -> RecommendedSettings:
    """A recommended.json. Raises BadInput, which begins with what asked for it."""
    try:
        return from_json(path.read_bytes(), RecommendedSettings)
    except OSError as error:
        raise BadInput(f"{asked}: {path} cannot be read ({error.strerror})") from error
    except SchemaError as error:
        raise BadInput(f"{asked}: {error}") from error


def settings_of(given: Mapping[str, str | int | bool] | str | Path | None) -> Settings:
    """Settings of a call: scenario name to value, or the path of a recommended.json. Raises BadInput."""
    if isinstance(given, (str, Path)):
        return recommended(Path(given), "settings")
    return normalised(given or {})


def goal_of(
    *,
    objective: str = "throughput",
    max_host_memory: str | None = None,
    max_device_memory: str | None = None,
    max_p99_ms: float | None = None,
    planned_steps: int | None = None,
    allow: Sequence[str] = (),
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    price: float = Goal().price,
) -> Goal:
    """The goal of a search. Raises BadInput for one that there is not."""
    objectives = get_args(Objective)
    if objective not in objectives:
        raise BadInput(f"--objective takes {', '.join(objectives)}, not '{objective}'")
    return Goal(
        objective=cast(Objective, objective),
        max_host_bytes=_bytes("--max-host-memory", max_host_memory),
        max_device_bytes=_bytes("--max-device-memory", max_device_memory),
        max_p99_ns=None if max_p99_ms is None else max_p99_ms * 1e6,
        planned_steps=planned_steps,
        allow=list(allow),
        keep=list(keep),
        only=list(only),
        price=price,
    )


def _bytes(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else bytes_of(text)
    except ValueError as error:
        raise BadInput(f"{option}: {error}") from error
