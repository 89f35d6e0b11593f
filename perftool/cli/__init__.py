"""The command line, the only package that prints or exits: its commands, each with its options.

Heavy imports stay inside functions, so that `perftool --help` is immediate.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from perftool import __version__
from perftool.cli.inputs import discover, expected_by, goal_of, seconds
from perftool.cli.look import surveyed
from perftool.cli.output import (
    BAD_INPUT,
    FAULT,
    NOT_WRITTEN,
    REGRESSION,
    UNDECIDED,
    Format,
    fail,
    print_out,
    rendered,
    rendered_beside,
    say,
    width,
)
from perftool.cli.run import Run
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from perftool.measure.lab import Lab
    from perftool.records import Settings, Summary
    from perftool.scenario import Context, Scenarios
    from perftool.trace import Taken

DEFAULT_BUDGET_S = 90.0

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which settings should I change in this PyTorch training, what will that buy me, and how sure is that?",
)

WorkloadArgument = Annotated[
    str, typer.Argument(help="path/to/file.py:attribute or package.module:attribute", show_default=True)
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]
budget_option = partial(typer.Option, "--budget", callback=seconds, metavar="SECONDS")
BudgetOption = Annotated[float, budget_option(help="seconds of measured blocks; start-up comes on top")]
OutOption = Annotated[Path, typer.Option("--out", help="folder for the results")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="of the data order, the weights and the drawn turns")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="NAME=VALUE", help="move the baseline; @FILE takes a recommended.json"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print summary.json on stdout, and nothing else")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress")]
ScenarioOption = Annotated[
    list[Path] | None, typer.Option("--scenario", metavar="FILE", help="a scenario file of your own")
]


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


@app.command()
def tune(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
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
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="SESSION", help="go on with an interrupted search")
    ] = None,
    device: DeviceOption = "auto",
    budget: Annotated[
        float | None,
        budget_option(help="seconds of measured blocks; start-up comes on top  [default: 90]", show_default=False),
    ] = None,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Profile, try scenarios alone and together, confirm the best, and recommend it."""
    from perftool.scenario import check_names
    from perftool.search import offer_of
    from perftool.search import tune as search

    def check(scenarios: Scenarios, context: Context) -> None:
        goal = run.session.goal
        check_names([*goal.allow, *goal.keep, *goal.only], scenarios)
        for text in keep or []:
            name, equals, value = text.partition("=")
            present = run.session.defaults[name]
            if equals and value != present:
                _refuse(f"--keep {text}: the baseline has {name}={present}; move it with -s {text}")
        if goal.max_device_bytes is not None and not context.on_cuda:
            _refuse("--max-device-memory: there is no CUDA device here; use --max-host-memory")

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        search(lab, offer_of(scenarios, context, lab.session.baseline, lab.session.goal))

    if resume is not None:
        run = Run.resumed(resume, workload, budget, as_json, quiet)
    else:
        kept = [text.partition("=")[0] for text in [*(keep or []), *(without or [])]]
        goal = goal_of(
            objective, max_host_memory, max_device_memory, max_p99, planned_steps, allow or [], kept, only or []
        )
        run = Run.fresh(
            "tune", workload, device, budget or DEFAULT_BUDGET_S, out, seed, settings, scenario, as_json, quiet, goal
        )
    run.check(check)
    run.go(measure)


@app.command()
def compare(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
    variants: Annotated[
        list[str] | None,
        typer.Argument(help="amp, amp=bf16, or amp=bf16,optimizer_kernel=fused; default: every scenario alone"),
    ] = None,
    device: DeviceOption = "auto",
    budget: BudgetOption = DEFAULT_BUDGET_S,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure each variant against the baseline."""
    from perftool.analysis.summary import all_decided
    from perftool.measure.repeat import measure_repeatedly
    from perftool.records import MEASURE
    from perftool.scenario import names_in, names_variant, variants_of

    if names_variant(workload, discover(scenario)):
        workload, variants = DEFAULT_WORKLOAD, [workload, *(variants or [])]
    wanted: list[Settings] = []

    def check(scenarios: Scenarios, context: Context) -> None:
        wanted.extend(variants_of(variants or [], scenarios, context, run.session.baseline))

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        numbers = [number for number in dict.fromkeys(lab.variant(one) for one in wanted) if number]
        measure_repeatedly(
            lab, MEASURE, numbers, budget_s=budget, decided=lambda: all_decided(lab.session, numbers, [MEASURE])
        )

    run = Run.fresh(
        "compare",
        workload,
        device,
        budget,
        out,
        seed,
        settings,
        scenario,
        as_json,
        quiet,
        named=names_in(variants or []),
    )
    run.check(check)
    run.go(measure)


@app.command()
def profile(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
    device: DeviceOption = "auto",
    budget: BudgetOption = DEFAULT_BUDGET_S,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """One variant: where time, jitter and memory go, what is wrong, and how far the hardware's limit is."""
    from perftool.measure.explain import PLAIN_ROUNDS, SHARE, explain
    from perftool.measure.repeat import measure_repeatedly
    from perftool.records import MEASURE

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        # Nothing is decided: more rounds, and not more launches, tell the tail of the step times.
        budget_s = (1 - SHARE) * budget
        measure_repeatedly(lab, MEASURE, [], budget_s=budget_s, decided=lambda: True, rounds=PLAIN_ROUNDS)
        explain(lab, SHARE * budget)

    run = Run.fresh("profile", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
    run.go(measure)


@app.command()
def check(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
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
        typer.Option(
            "--link",
            metavar="PATH",
            help="what git ignores, or a submodule, that the revision needs",
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option("--history", metavar="FILE", help="add the ratios to this file, for `perftool history`"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="an unexplained improvement fails, too")] = False,
    device: DeviceOption = "auto",
    budget: Annotated[
        float,
        budget_option(help="seconds of blocks; a failure is confirmed in up to twice as many more"),
    ] = 60.0,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Has this training become slower, or hungrier, than at a revision? 0: no, 1: yes, 3: cannot be told."""
    from perftool.analysis.gate import decision
    from perftool.gate import beside_calibration
    from perftool.gate import check as measure_both
    from perftool.measure.worktree import both_sides
    from perftool.store import StoreError, baseline_path, try_out

    if (against is not None) == (baseline is not None or write_baseline):
        fail("check takes --against REV, or --baseline FILE, or --write-baseline", BAD_INPUT)
    if against is None and (link or history is not None):
        fail("--link and --history go with --against REV", BAD_INPUT)
    expected = None if baseline is None or write_baseline else expected_by(baseline, workload)
    file = baseline or baseline_path(out, workload)
    try:
        if history is not None:
            try_out(history, "--history", appends=True)
        if write_baseline:
            try_out(file, "--baseline", appends=False)
    except StoreError as error:
        fail(str(error), NOT_WRITTEN)
    sides = (
        both_sides(workload, against, link or []) if against is not None else nullcontext(beside_calibration(workload))
    )
    run = Run.of_sides(workload, sides, expected, device, budget, out, seed, settings, scenario, as_json, quiet)

    def code(summary: Summary) -> int:
        if summary.check is None:
            return run.store_baseline(file)
        if history is not None:
            run.remember(history, summary.check)
        codes = {"passed": 0, "regression": REGRESSION, "undecided": UNDECIDED}
        decided = decision(summary.check, strict=strict)
        if decided != decision(summary.check, strict=False):
            say("perftool: failed by --strict: something got better, and nobody said why")
        return codes[decided]

    run.go(lambda lab, scenarios, context: measure_both(lab), code)


@app.command()
def trace(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="how many to trace; by default as many as fit into 20 MB")
    ] = None,
    device: DeviceOption = "auto",
    budget: BudgetOption = DEFAULT_BUDGET_S,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print what the trace shows and its files as JSON, and nothing else")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Trace a few steps of one variant with torch.profiler, for Perfetto and TensorBoard."""
    from perftool.trace import trace as take

    taken: list[Taken] = []

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        taken.append(take(lab, steps=steps))

    run = Run.fresh("trace", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
    run.go_trace(measure, taken)


@app.command()
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
    from perftool.store import StoreError, load_session

    try:
        loaded = [load_session(path) for path in (session, other) if path is not None]
    except StoreError as error:
        fail(str(error), BAD_INPUT)
    if len(loaded) == 1:
        print_out(rendered(loaded[0], conclude(loaded[0]), form))
        return
    first, second = loaded
    reasons = incomparable(first, second)
    if reasons:
        told = "; ".join(reasons)
        fail(f"{session} and {other} cannot be compared: {told}; draw each by itself", BAD_INPUT)
    print_out(rendered_beside(side_by_side((first, conclude(first)), (second, conclude(second))), form))


@app.command()
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
        fail(f"--metric takes {', '.join(GATES)}, not '{metric}'", BAD_INPUT)
    try:
        series = series_of(load_history(file, say), metric)
    except StoreError as error:
        fail(str(error), BAD_INPUT)
    if not series:
        fail(f"{file} has no check with {metric}", BAD_INPUT)
    print_out(render_history(series, width=width()))


@app.command()
def scenarios(
    name: Annotated[str | None, typer.Argument(help="one scenario, in full")] = None,
    workload: Annotated[str, typer.Option("--workload", help="whose values to list")] = DEFAULT_WORKLOAD,
    device: DeviceOption = "auto",
    scenario: ScenarioOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON, and nothing else")] = False,
) -> None:
    """What can be varied here; what cannot, and why."""
    from perftool.records import ScenarioReport, to_json
    from perftool.report.terminal import render_scenario, render_scenarios
    from perftool.scenario import Context, ScenarioError, check_names

    found = discover(scenario)
    try:
        check_names([name] if name else [], found)
    except ScenarioError as error:
        fail(str(error), BAD_INPUT)
    described, _, _ = surveyed(workload, device, seed=0, budget_s=0, quiet=False)
    context = Context(machine=described.machine, workload=described.workload)
    shown = [one.described(context) for one in found.values() if name in (None, one.name)]
    if as_json:
        print_out(to_json(ScenarioReport(workload=workload, scenarios=shown), indent=2).decode())
    elif name is not None:
        print_out(render_scenario(shown[0], width=width()))
    else:
        print_out(render_scenarios(shown, width=width()))


@app.command()
def machine(
    device: DeviceOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="print the machine and its fitness as JSON, and nothing else")
    ] = False,
) -> None:
    """What this machine is, and how fit it is for measuring now."""
    from perftool.analysis.fitness import rate
    from perftool.measure.devices import DeviceError, resolve_device
    from perftool.measure.probes.machine import describe_machine, read_fitness
    from perftool.records import MachineReport, to_json
    from perftool.report.terminal import render_machine

    try:
        found = resolve_device(device)
    except DeviceError as error:
        fail(str(error), BAD_INPUT)
    fitness = read_fitness(device=found)  # before the description makes this process one that uses the device
    described = describe_machine(found)
    if as_json:
        report = MachineReport(machine=described, fitness=fitness, rating=rate(fitness))
        print_out(to_json(report, indent=2).decode())
        return
    print_out(render_machine(described, fitness, rate(fitness), width=width()))


def _refuse(text: str) -> NoReturn:
    """From within the checks of a run, which clean up."""
    from perftool.scenario import ScenarioError

    raise ScenarioError(text)
