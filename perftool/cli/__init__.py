"""The command line, the only package that prints or exits: its commands, each with its options.

Heavy imports stay inside functions, so that `perftool --help` is immediate.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perftool import __version__
from perftool.cli.commands import (
    Commands,
    Comparing,
    DeviceOption,
    Given,
    Measuring,
    Plain,
    ScenarioOption,
    measuring,
)
from perftool.cli.output import Format, print_out, rendered, rendered_beside, say, width
from perftool.cli.terminal import Terminal
from perftool.errors import FAULT, BadInput
from perftool.jobs.options import CHECK_BUDGET_S
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from perftool.jobs.job import Job

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which settings should I change in this PyTorch training, what will that buy me, and how sure is that?",
)


def main() -> None:
    """Entry point of the `perftool` command."""
    _leave_working_directory_out()
    try:
        app()
    except Exception:
        _tell_fault()
        sys.exit(FAULT)


def _tell_fault() -> None:
    from traceback import print_exc

    print_exc()
    say(
        "perftool: this is a fault of perftool's own, and says nothing about your training; please report it with the "
        "lines above"
    )


def _leave_working_directory_out() -> None:
    """A folder `scenarios/` of the user's must not shadow the built-in one, which an editable install has found only
    after the whole path. `python -m` puts the working directory first, by its absolute path; with -P (safe_path)
    nobody does. The worker looks there for the user's own modules, after all that is installed."""
    with suppress(OSError):  # the working directory is gone
        if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
            sys.path.pop(0)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"perftool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --------------------------------------------------------------------------------------------------------- commands


@measuring(app)
def tune(
    given: Given,
    objective: Annotated[
        str, typer.Option("--objective", help="throughput, step-time, jitter, memory or time-to-loss")
    ] = "throughput",
    max_host_memory: Annotated[
        str | None, typer.Option("--max-host-memory", metavar="SIZE", help="such as 800MB: peak of the process")
    ] = None,
    max_device_memory: Annotated[
        str | None, typer.Option("--max-device-memory", metavar="SIZE", help="such as 20GB: reserved by torch")
    ] = None,
    max_p99: Annotated[
        float | None, typer.Option("--max-p99", metavar="MS", min=0.0, help="99th percentile of the step time")
    ] = None,
    planned_steps: Annotated[
        int | None, typer.Option("--planned-steps", min=1, help="a slower start must pay back within so many steps")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="also vary what changes the optimisation: batch_size")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="NAME[=VALUE]", help="do not vary this scenario")
    ] = None,
    without: Annotated[list[str] | None, typer.Option("--without", metavar="NAME", help="the same as --keep")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="vary these scenarios alone")] = None,
    price: Annotated[
        float, typer.Option("--price", metavar="PERCENT", min=0.0, help="what a setting must bring to be advised")
    ] = 1.0,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="SESSION", help="go on with an interrupted search")
    ] = None,
) -> Job[Any]:
    """Profile, try scenarios alone and together, confirm the best, and recommend it."""
    from perftool.jobs.inputs import goal_of
    from perftool.jobs.tune import Tune, resumed

    kept = tuple(text for text in keep or [] if "=" in text)
    if resume is not None:
        return resumed(resume, given.target, given.budget_s or 0.0, kept, given.out)
    goal = goal_of(
        objective=objective,
        max_host_memory=max_host_memory,
        max_device_memory=max_device_memory,
        max_p99_ms=max_p99,
        planned_steps=planned_steps,
        allow=allow or [],
        keep=[text.partition("=")[0] for text in [*(keep or []), *(without or [])]],
        only=only or [],
        price=price / 100,
    )
    return Tune(options=given.options(), goal=goal, kept=kept)


@measuring(app, Comparing)
def compare(
    given: Given,
    variants: Annotated[
        list[str] | None,
        typer.Argument(help="amp, amp=bf16, or amp=bf16,optimizer_kernel=fused; default: every scenario alone"),
    ] = None,
) -> Job[Any]:
    """Measure each variant against the baseline."""
    from perftool.jobs.compare import Compare

    given, wanted = given.with_variants(variants or [])
    return Compare(options=given.options(), variants=wanted)


@measuring(app)
def profile(given: Given) -> Job[Any]:
    """One variant: where time, jitter and memory go, what is wrong, and how far the hardware's limit is."""
    from perftool.jobs.profile import Profile

    return Profile(options=given.options())


@measuring(app)
def check(
    given: Given,
    against: Annotated[
        str | None, typer.Option("--against", metavar="REV", help="the git revision that must not be faster")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="in place of a revision: what was stored")
    ] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="store what is measured, in FILE or results/baselines/")
    ] = False,
    link: Annotated[
        list[str] | None,
        typer.Option("--link", metavar="PATH", help="what git ignores, or a submodule, that the revision needs"),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option("--history", metavar="FILE", help="add the ratios to this file, for `perftool history`"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="an unexplained improvement fails, too")] = False,
) -> Job[Any]:
    """Has this training become slower, or hungrier, than at a revision? 0: no, 1: yes, 3: cannot be told.

    A failure is confirmed in up to twice the budget more.
    """
    from perftool.jobs.check import check_of

    return check_of(
        given.options(CHECK_BUDGET_S),
        against=against,
        baseline=baseline,
        write_baseline=write_baseline,
        link=link or [],
        history=history,
        strict=strict,
    )


@measuring(app)
def trace(
    given: Given,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="how many to trace; by default as many as fit into 20 MB")
    ] = None,
) -> Job[Any]:
    """Trace a few steps of one variant with torch.profiler, for Perfetto and TensorBoard."""
    from perftool.jobs.trace import Trace

    return Trace(options=given.options(), steps=steps)


@app.command(cls=Measuring)
def run(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="NAME=VALUE", help="train under this; @FILE takes a recommended.json"),
    ] = None,
    scenario: ScenarioOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="keep its step times and phases, and report them at its end")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="folder for what is recorded")] = Path("results"),
) -> None:
    """The real training, to its end, under settings that were measured. Its output and exit code are its own."""
    from perftool.jobs.failures import told
    from perftool.jobs.run import become, prepared, recorded

    with told():
        ready = prepared(context.obj, settings or [], scenario or [], sys.argv[1:])
        if not record:
            become(ready)
        raise typer.Exit(recorded(ready, out, say))


@app.command(cls=Plain)
def report(
    session: Annotated[Path, typer.Argument(help="a session's folder, or its session.json")],
    other: Annotated[
        Path | None, typer.Argument(help="a second one of the same training, to put beside the first")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="what to write")] = Format.terminal,
) -> None:
    """Draw a saved session again, or two side by side; needs neither torch nor a GPU."""
    from perftool.analysis.across import incomparable, side_by_side
    from perftool.analysis.recommend import conclude
    from perftool.store import StoreError, load_session, shown

    try:
        loaded = [load_session(path) for path in (session, other) if path is not None]
    except StoreError as error:
        raise BadInput(str(error)) from error
    if len(loaded) == 1:
        folder = session if session.is_dir() else session.parent
        print_out(rendered(loaded[0], conclude(loaded[0], shown(folder)), form))
        return
    first, second = loaded
    reasons = incomparable(first, second)
    if reasons:
        told = "; ".join(reasons)
        raise BadInput(f"{session} and {other} cannot be compared: {told}; draw each by itself")
    print_out(rendered_beside(side_by_side((first, conclude(first)), (second, conclude(second))), form))


@app.command(cls=Plain)
def history(
    file: Annotated[Path, typer.Argument(help="that `perftool check --history FILE` has written")],
    metric: Annotated[
        str, typer.Option("--metric", help="throughput, step_p95, jitter, peak_host, peak_device or start_up")
    ] = "throughput",
) -> None:
    """Draw the checks of a history, each against its pinned revision, and mark changes of level."""
    from perftool.analysis.gate import GATES
    from perftool.analysis.history import series_of
    from perftool.report.terminal import render_history
    from perftool.store import StoreError, load_history

    if metric not in GATES:
        raise BadInput(f"--metric takes {', '.join(GATES)}, not '{metric}'")
    try:
        series = series_of(load_history(file, say), metric)
    except StoreError as error:
        raise BadInput(str(error)) from error
    if not series:
        raise BadInput(f"{file} has no check with {metric}")
    print_out(render_history(series, width=width()))


@app.command(cls=Measuring)
def scenarios(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="one scenario, in full")] = None,
    workload: Annotated[
        str | None,
        typer.Option("--workload", help=f"whose values to list  [default: {DEFAULT_WORKLOAD}]", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    scenario: ScenarioOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON, and nothing else")] = False,
) -> None:
    """What can be varied here, of the workload or the command; what cannot, and why."""
    from perftool.jobs.inputs import target_of
    from perftool.jobs.scenarios import described
    from perftool.records import to_json
    from perftool.report.terminal import render_scenario, render_scenarios

    target = target_of(workload, context.obj, []) or DEFAULT_WORKLOAD
    found = described(target, scenario or [], device, name, Terminal(as_json=as_json, quiet=False))
    if as_json:
        print_out(to_json(found, indent=2).decode())
    elif name is not None:
        print_out(render_scenario(found.scenarios[0], width=width()))
    else:
        print_out(render_scenarios(found.scenarios, width=width()))


@app.command(cls=Plain)
def machine(
    device: DeviceOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="print the machine and its fitness as JSON, and nothing else")
    ] = False,
) -> None:
    """What this machine is, and how fit it is for measuring now."""
    from perftool.analysis.fitness import rate
    from perftool.measure.devices import DeviceError, resolve_device
    from perftool.probes.machine import describe_machine, read_fitness
    from perftool.records import MachineReport, to_json
    from perftool.report.terminal import render_machine

    try:
        found = resolve_device(device)
    except DeviceError as error:
        raise BadInput(str(error)) from error
    fitness = read_fitness(device=found)  # before the description makes this process one that uses the device
    described = describe_machine(found)
    if as_json:
        report = MachineReport(machine=described, fitness=fitness, rating=rate(fitness))
        print_out(to_json(report, indent=2).decode())
        return
    print_out(render_machine(described, fitness, rate(fitness), width=width()))
