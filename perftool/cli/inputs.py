"""What options are parsed into; what cannot be parsed ends the program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from perftool.cli.output import BAD_INPUT, fail

if TYPE_CHECKING:
    from perftool.records import Goal, Settings, StoredBaseline
    from perftool.scenario import Scenarios


BUDGET_MOST_S = 7 * 24 * 3600.0


def seconds(given: float | None) -> float | None:
    """A budget as given. Raises typer.BadParameter for one that is none, infinity among them."""
    if given is None or 1 <= given <= BUDGET_MOST_S:
        return given
    raise typer.BadParameter(f"it takes seconds, from 1 to {BUDGET_MOST_S:.0f} (a week), not {given:g}")


def parse_settings(given: Sequence[str]) -> Settings:
    """`NAME=VALUE` and `@FILE` as settings; ends the program for anything else."""
    from perftool.records import RecommendedSettings, SchemaError, from_json

    settings: Settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if text.startswith("@"):
            try:
                settings.update(from_json(Path(text[1:]).read_bytes(), RecommendedSettings).settings)
            except OSError as error:
                fail(f"-s {text}: {text[1:]} cannot be read ({error.strerror})", BAD_INPUT)
            except SchemaError as error:
                fail(f"-s {text}: {error}", BAD_INPUT)
        elif equals and name and value:
            settings[name] = value
        else:
            fail(f"-s takes NAME=VALUE or @recommended.json, not '{text}'", BAD_INPUT)
    return settings


def goal_of(
    objective: str,
    max_host_memory: str | None,
    max_device_memory: str | None,
    max_p99_ms: float | None,
    planned_steps: int | None,
    allow: list[str],
    keep: list[str],
    only: list[str],
) -> Goal:
    """The goal of a search; ends the program for one that there is not."""
    from typing import get_args

    from perftool.records import Goal, Objective
    from perftool.units import bytes_of

    objectives = get_args(Objective)
    if objective not in objectives:
        fail(f"--objective takes {', '.join(objectives)}, not '{objective}'", BAD_INPUT)
    sizes = {"--max-host-memory": max_host_memory, "--max-device-memory": max_device_memory}
    limits: dict[str, int | None] = {}
    for option, text in sizes.items():
        try:
            limits[option] = None if text is None else bytes_of(text)
        except ValueError as error:
            fail(f"{option}: {error}", BAD_INPUT)
    return Goal(
        objective=objective,  # type: ignore[arg-type]
        max_host_bytes=limits["--max-host-memory"],
        max_device_bytes=limits["--max-device-memory"],
        max_p99_ns=None if max_p99_ms is None else max_p99_ms * 1e6,
        planned_steps=planned_steps,
        allow=allow,
        keep=keep,
        only=only,
    )


def discover(files: Sequence[Path] | None) -> Scenarios:
    from perftool import scenario

    try:
        return scenario.discover(list(files or []))
    except scenario.ScenarioError as error:
        fail(str(error), BAD_INPUT)


def expected_by(baseline: Path, workload: str) -> StoredBaseline:
    """A stored baseline of this workload; ends the program for anything else."""
    from perftool.store import StoreError, load_baseline

    try:
        expected = load_baseline(baseline)
    except StoreError as error:
        fail(str(error), BAD_INPUT)
    if expected.workload != workload:
        fail(f"--baseline {baseline}: it is of {expected.workload}, not of {workload}", BAD_INPUT)
    return expected
