"""The commands as calls: `perftool.tune("train.py:mine")`, `perftool.compare(["python", "train.py"], "amp=bf16")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from perftool.errors import NotWritten
from perftool.jobs.compare import Compare
from perftool.jobs.inputs import goal_of, settings_of, target_of
from perftool.jobs.job import Job, Made
from perftool.jobs.options import BUDGET_S, Options
from perftool.jobs.profile import Profile
from perftool.jobs.runner import run
from perftool.jobs.tune import Tune
from perftool.records import Command, Summary
from perftool.workload import DEFAULT_WORKLOAD


class Given(TypedDict, total=False):
    """What every call takes beside its target.

    budget_s: of measured blocks, 90 by default; start-up comes on top.
    settings: that move the baseline, scenario name to value, or the path of a recommended.json.
    vary: options of the command that are settings, such as `--num-workers=0|2|4`.
    device: auto (the default), cpu, cuda or cuda:N. seed: of the data order, the weights and the drawn turns.
    scenario_files: scenarios of your own. out: a folder for the session and its report; without it nothing is kept.
    """

    budget_s: float
    settings: Mapping[str, str | int | bool] | str | Path
    vary: Sequence[str]
    device: str
    seed: int
    scenario_files: Sequence[str | Path]
    out: str | Path | None


def tune(
    target: str | Sequence[str],
    *,
    objective: str = "throughput",
    max_host_memory: str | None = None,
    max_device_memory: str | None = None,
    max_p99_ms: float | None = None,
    planned_steps: int | None = None,
    allow: Sequence[str] = (),
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    **given: Unpack[Given],
) -> Summary:
    """Try scenarios alone and together, confirm the best, and recommend it, as `perftool tune` does.

    target: a workload's reference (`train.py:mine`), or the words of a command (`["python", "train.py"]`).
    given: budget_s, settings, vary, device, seed, scenario_files, out; see Given.
    The goal and its limits are as on the command line.

    Nothing is printed. Interrupted, it returns what it knows by then, and raises KeyboardInterrupt where that is
    nothing. Raises PerftoolError, whose text says what to do and whose `exit_code` is that of the command.
    """
    goal = goal_of(
        objective=objective,
        max_host_memory=max_host_memory,
        max_device_memory=max_device_memory,
        max_p99_ms=max_p99_ms,
        planned_steps=planned_steps,
        allow=allow,
        keep=keep,
        only=only,
    )
    wanted = {
        "--objective": objective,
        "--max-host-memory": max_host_memory,
        "--max-device-memory": max_device_memory,
        "--max-p99": max_p99_ms,
        "--planned-steps": planned_steps,
        "--allow": allow,
        "--keep": keep,
        "--only": only,
    }
    return _summary(Tune(options=_options("tune", target, _words(wanted), given), goal=goal))


def compare(target: str | Sequence[str], *variants: str, **given: Unpack[Given]) -> Summary:
    """Measure each variant against the baseline, as `perftool compare` does; every scenario alone without variants.

    variants: `amp`, `amp=bf16`, or `amp=bf16,optimizer_kernel=fused` for one of two settings. All else as for `tune`.
    """
    return _summary(Compare(options=_options("compare", target, variants, given), variants=variants))


def profile(target: str | Sequence[str], **given: Unpack[Given]) -> Summary:
    """Explain one variant: where time, jitter and memory go, and what is wrong. All else as for `tune`."""
    return _summary(Profile(options=_options("profile", target, (), given)))


def _options(command: Command, target: str | Sequence[str], own: Sequence[str], given: Given) -> Options:
    """own: the words that only this command has."""
    workload, words = (target, None) if isinstance(target, str) else (None, target)
    settings, out, files = settings_of(given.get("settings")), given.get("out"), given.get("scenario_files", ())
    options = Options(
        target=target_of(workload, words, given.get("vary", ())) or DEFAULT_WORKLOAD,
        device=given.get("device", "auto"),
        budget_s=given.get("budget_s", BUDGET_S),
        out=None if out is None else Path(out),
        seed=given.get("seed", 0),
        settings=settings,
        scenario_files=tuple(map(Path, files)),
    )
    common = {
        "-s": [f"{name}={value}" for name, value in settings.items()],
        "--vary": given.get("vary"),
        "--budget": f"{options.budget_s:g}",
        "--device": options.device,
        "--seed": str(options.seed),
        "--scenario": list(map(str, files)),
    }
    named = [target, *own] if isinstance(target, str) else [*own, "--", *target]
    return replace(options, arguments=(command, *_words(common), *named))


def _words(options: Mapping[str, object]) -> list[str]:
    """A call's keywords as the command line has them, so that a report can say what measures it again."""
    listed = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in options.items()}
    pairs = [(name, value) for name, values in listed.items() for value in values if value is not None]
    return [word for name, value in pairs for word in (name, str(value))]


def _summary(job: Job[Made]) -> Summary:
    outcome = run(job)
    if outcome.unwritten is not None:
        raise NotWritten(outcome.unwritten)
    return outcome.summary
