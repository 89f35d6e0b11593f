"""The command line: the only file that prints or exits.

Heavy imports stay inside the commands, so that `perftool --help` is immediate.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from perftool import __version__
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from types import FrameType

    from rich.progress import Progress

    from perftool.analysis.search import Standing
    from perftool.measure.messages import Described
    from perftool.measure.rounds import BaselineFailed, Lab
    from perftool.records import (
        Check,
        Command,
        Fitness,
        Goal,
        Machine,
        Record,
        Session,
        Settings,
        Side,
        SideBySide,
        StoredBaseline,
        Summary,
    )
    from perftool.scenario import Context, Scenarios
    from perftool.store import SessionStore
    from perftool.trace import Taken

REGRESSION = 1
BAD_INPUT = 2
UNDECIDED = 3
BASELINE_FAILED = 4
NOT_WRITTEN = 5
FAULT = 70  # EX_SOFTWARE of sysexits.h: Python's own 1 would be taken for a regression
INTERRUPTED = 130
DEFAULT_BUDGET_S = 90.0
FITNESS_WINDOW_S = 0.5

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
BudgetOption = Annotated[
    float, typer.Option("--budget", min=1, help="seconds of measured blocks; start-up comes on top")
]
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


class Format(StrEnum):
    """What `report` writes."""

    terminal = "terminal"
    markdown = "markdown"
    html = "html"
    json = "json"


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
    _say(
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
        typer.Option(
            "--budget",
            min=1,
            help="seconds of measured blocks; start-up comes on top  [default: 90]",
            show_default=False,
        ),
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
    from perftool.tune import offer_of
    from perftool.tune import tune as search

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
        run = _Run.resumed(resume, workload, budget, as_json, quiet)
    else:
        kept = [text.partition("=")[0] for text in [*(keep or []), *(without or [])]]
        goal = _goal(
            objective, max_host_memory, max_device_memory, max_p99, planned_steps, allow or [], kept, only or []
        )
        run = _Run.fresh(
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

    if names_variant(workload, _discover(scenario)):
        workload, variants = DEFAULT_WORKLOAD, [workload, *(variants or [])]
    wanted: list[Settings] = []

    def check(scenarios: Scenarios, context: Context) -> None:
        wanted.extend(variants_of(variants or [], scenarios, context, run.session.baseline))

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        numbers = [number for number in dict.fromkeys(lab.variant(one) for one in wanted) if number]
        measure_repeatedly(
            lab, MEASURE, numbers, budget_s=budget, decided=lambda: all_decided(lab.session, numbers, [MEASURE])
        )

    run = _Run.fresh(
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

    run = _Run.fresh("profile", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
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
        typer.Option("--link", metavar="PATH", help="data or built files that git ignores and the revision needs"),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option("--history", metavar="FILE", help="add the ratios to this file, for `perftool history`"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="an unexplained improvement fails, too")] = False,
    device: DeviceOption = "auto",
    budget: Annotated[
        float,
        typer.Option("--budget", min=1, help="seconds of blocks; a failure is confirmed in up to twice as many more"),
    ] = 60.0,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Has this training become slower, or hungrier, than at a revision? 0: no, 1: yes, 3: cannot be told."""
    from perftool.analysis.baseline import stored
    from perftool.analysis.gate import decision
    from perftool.gate import beside_calibration
    from perftool.gate import check as measure_both
    from perftool.measure.worktree import both_sides
    from perftool.store import StoreError, baseline_path, load_baseline, save_baseline, try_out

    if (against is not None) == (baseline is not None or write_baseline):
        _fail("check takes --against REV, or --baseline FILE, or --write-baseline", BAD_INPUT)
    if against is None and (link or history is not None):
        _fail("--link and --history go with --against REV", BAD_INPUT)
    expected = None
    if baseline is not None and not write_baseline:
        try:
            expected = load_baseline(baseline)
        except StoreError as error:
            _fail(str(error), BAD_INPUT)
        if expected.workload != workload:
            _fail(f"--baseline {baseline}: it is of {expected.workload}, not of {workload}", BAD_INPUT)
    file = baseline or baseline_path(out, workload)
    try:
        if history is not None:
            try_out(history, "--history", appends=True)
        if write_baseline:
            try_out(file, "--baseline", appends=False)
    except StoreError as error:
        _fail(str(error), NOT_WRITTEN)
    sides = (
        both_sides(workload, against, link or []) if against is not None else nullcontext(beside_calibration(workload))
    )
    run = _Run.of_sides(workload, sides, expected, device, budget, out, seed, settings, scenario, as_json, quiet)

    def code(summary: Summary) -> int:
        if summary.check is None:
            found = stored(run.session)
            if found is None:
                _say("perftool: too few launches were measured to store a baseline; raise --budget")
                return UNDECIDED
            with run.writing_elsewhere():
                save_baseline(file, found)
                launches = len(found.metrics["throughput"].log_values)
                _say(f"baseline: {file}, from {launches} launches; compare with it by")
                _say(f"    perftool check {workload} --baseline {file}")
            return 0
        if history is not None:
            run.remember(history, summary.check)
        codes = {"passed": 0, "regression": REGRESSION, "undecided": UNDECIDED}
        return codes[decision(summary.check, strict=strict)]

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

    run = _Run.fresh("trace", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
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
        _fail(str(error), BAD_INPUT)
    if len(loaded) == 1:
        typer.echo(_rendered(loaded[0], conclude(loaded[0]), form))
        return
    first, second = loaded
    reasons = incomparable(first, second)
    if reasons:
        told = "; ".join(reasons)
        _fail(f"{session} and {other} cannot be compared: {told}; draw each by itself", BAD_INPUT)
    typer.echo(_rendered_beside(side_by_side((first, conclude(first)), (second, conclude(second))), form))


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
        _fail(f"--metric takes {', '.join(GATES)}, not '{metric}'", BAD_INPUT)
    try:
        series = series_of(load_history(file, _say), metric)
    except StoreError as error:
        _fail(str(error), BAD_INPUT)
    if not series:
        _fail(f"{file} has no check with {metric}", BAD_INPUT)
    typer.echo(render_history(series, width=_width()))


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

    found = _discover(scenario)
    try:
        check_names([name] if name else [], found)
    except ScenarioError as error:
        _fail(str(error), BAD_INPUT)
    described, _, _ = _survey(workload, device, seed=0, budget_s=0, quiet=False)
    context = Context(machine=described.machine, workload=described.workload)
    shown = [one.described(context) for one in found.values() if name in (None, one.name)]
    if as_json:
        typer.echo(to_json(ScenarioReport(workload=workload, scenarios=shown), indent=2).decode())
    elif name is not None:
        typer.echo(render_scenario(shown[0], width=_width()))
    else:
        typer.echo(render_scenarios(shown, width=_width()))


@app.command()
def machine(
    device: DeviceOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="print the machine and its fitness as JSON, and nothing else")
    ] = False,
) -> None:
    """What this machine is, and how fit it is for measuring now."""
    from perftool.analysis.fitness import rate
    from perftool.measure.probes.machine import describe_machine, read_fitness
    from perftool.measure.worker import DeviceError, resolve_device
    from perftool.records import MachineReport, to_json
    from perftool.report.terminal import render_machine

    try:
        found = resolve_device(device)
    except DeviceError as error:
        _fail(str(error), BAD_INPUT)
    fitness = read_fitness(device=found)  # before the description makes this process one that uses the device
    described = describe_machine(found)
    if as_json:
        report = MachineReport(machine=described, fitness=fitness, rating=rate(fitness))
        typer.echo(to_json(report, indent=2).decode())
        return
    typer.echo(render_machine(described, fitness, rate(fitness), width=_width()))


# -------------------------------------------------------------------------------------------------------- one session


Measure = Callable[["Lab", "Scenarios", "Context"], None]


class _Run:
    """One measuring command, from its options to its files and its exit code."""

    def __init__(self, store: SessionStore, scenario_files: Sequence[Path], as_json: bool, quiet: bool) -> None:
        self.store, self.as_json, self.quiet = store, as_json, quiet
        self.unwritten: str | None = None
        self.unwritten_elsewhere: str | None = None  # a file beside the results, which does not cost these
        self.keeps = False  # whether the folder holds a session already
        self.lock = ExitStack()
        self.scenario_files = list(scenario_files)
        self.scenarios = _discover(self.scenario_files)
        self.session: Session
        self.context: Context
        self.launch_bytes = 0
        self.fitness: Fitness | None = None

    @classmethod
    def fresh(
        cls,
        command: Command,
        workload: str,
        device: str,
        budget_s: float,
        out: Path,
        seed: int,
        settings: Sequence[str] | None,
        scenario_files: Sequence[Path] | None,
        as_json: bool,
        quiet: bool,
        goal: Goal | None = None,
        named: Sequence[str] = (),
    ) -> _Run:
        """A new session. Everything that can be wrong with the input is found before anything is measured.

        named: scenarios that the command's own arguments name, to be told at once where there are none such.
        """
        from perftool.measure.survey import new_session
        from perftool.scenario import check_names

        files = list(scenario_files or [])
        _discover(files)
        moved = _parse_settings(settings or [])
        run = cls(_open_results(out, workload, command), files, as_json, quiet)
        with run._input():
            check_names([*moved, *named], run.scenarios)
            described = run._look(workload, device, seed, budget_s)
            run.session = new_session(
                described,
                run.scenarios,
                fitness=run.fitness,
                command=command,
                arguments=sys.argv[1:],
                settings=moved,
                seed=seed,
                budget_s=budget_s,
                goal=goal,
                scenario_files=files,
            )
        return run

    @classmethod
    def resumed(cls, path: Path, workload: str, more_s: float | None, as_json: bool, quiet: bool) -> _Run:
        """A session that was interrupted, to go on where it stopped; `more_s` adds to its budget.

        workload: the session's own, or the default where none was given.
        """
        from msgspec.structs import replace

        from perftool.store import StoreError, reopen

        try:
            store, session = reopen(path)
        except StoreError as error:
            _fail(str(error), BAD_INPUT)
        if session.command != "tune":
            _fail(f"--resume {path}: that is a session of `perftool {session.command}`, not of a search", BAD_INPUT)
        if workload not in (DEFAULT_WORKLOAD, session.workload.reference):
            _fail(f"--resume {path}: that is a session of {session.workload.reference}, not of {workload}", BAD_INPUT)
        run = cls(store, [Path(file) for file in session.scenario_files], as_json, quiet)
        run.keeps = True
        described = run._look(session.workload.reference, session.machine.device, session.seed, session.budget_s)
        then, now = session.machine, described.machine
        for name in ("cpu_model", "usable_cores", "device_name", "torch_version"):
            if getattr(then, name) != getattr(now, name):
                _fail(
                    f"--resume {path}: its {name} was {getattr(then, name)} and is {getattr(now, name)} here, "
                    "so its measurements do not belong together with new ones; start a new search",
                    BAD_INPUT,
                )
        run.session = replace(session, interrupted=False, budget_s=session.budget_s + (more_s or 0.0))
        return run

    @classmethod
    def of_sides(
        cls,
        workload: str,
        sides: AbstractContextManager[list[Side]],
        expected: StoredBaseline | None,
        device: str,
        budget_s: float,
        out: Path,
        seed: int,
        settings: Sequence[str] | None,
        scenario_files: Sequence[Path] | None,
        as_json: bool,
        quiet: bool,
    ) -> _Run:
        """A check of two sides, which are there until the lock is given back."""
        from perftool.gate import described, new_check
        from perftool.scenario import Context, check_names

        files = list(scenario_files or [])
        _discover(files)
        moved = _parse_settings(settings or [])
        run = cls(_open_results(out, workload, "check"), files, as_json, quiet)
        with run._input():
            check_names(moved, run.scenarios)
            with _looking(workload, device, quiet, run.lock) as (watcher, fitness):
                watcher.update("setting up both sides", 0.0, 0.0)
                both = run.lock.enter_context(sides)
                found, run.launch_bytes = described(both, device, seed)
            run.context = Context(machine=found[1].machine, workload=found[1].workload)
            run.fitness = _of_device(fitness, found[1].machine)
            run.session = new_check(
                both,
                found,
                run.scenarios,
                reference=workload,
                expected=expected,
                arguments=sys.argv[1:],
                settings=moved,
                seed=seed,
                budget_s=budget_s,
                fitness=run.fitness,
                scenario_files=[str(file.resolve()) for file in files],
            )
        return run

    def _look(self, workload: str, device: str, seed: int, budget_s: float) -> Described:
        from perftool.scenario import Context

        described, self.launch_bytes, self.fitness = _survey(workload, device, seed, budget_s, self.quiet, self.lock)
        self.context = Context(machine=described.machine, workload=described.workload)
        return described

    def check(self, check: Callable[[Scenarios, Context], None]) -> None:
        """Look at further input of the command."""
        with self._input():
            check(self.scenarios, self.context)

    @contextmanager
    def _input(self) -> Iterator[None]:
        """Where the input may turn out to be unusable: nothing is left behind then."""
        from perftool.scenario import ScenarioError

        try:
            yield
        except ScenarioError as error:
            self._leave()
            _fail(str(error), BAD_INPUT)
        except BaseException:  # also a fault of the program: no empty folder, and no revision checked out
            self._leave()
            raise

    def _leave(self) -> None:
        if not self.keeps:
            self.store.discard()
        self.lock.close()

    def go(self, measure: Measure, code_of: Callable[[Summary], int] = lambda _: 0) -> NoReturn:
        """Measure, write, print, exit. What was measured is kept whatever happens.

        code_of: the exit code where nothing went wrong.
        """
        from perftool.analysis.recommend import conclude

        code = self._measured(measure)
        try:
            summary = conclude(self.session)
            self._write(summary)
            _print(_rendered(self.session, summary, Format.json if self.as_json else Format.terminal))
            code = code or code_of(summary)
            self._draw(summary)  # last, since a fault in drawing must not cost the answer
        except Exception:
            self._tell_what_is_kept()
            raise
        if self.unwritten_elsewhere is not None:
            _say(f"perftool: {self.unwritten_elsewhere}")
            code = code or NOT_WRITTEN
        if self.unwritten is not None:
            _fail(self.unwritten, code or NOT_WRITTEN)
        _say(f"report: {self.store.folder / 'report.html'}; for a pull request, report.md beside it")
        if code == INTERRUPTED and self.session.command == "tune":
            _say(f"go on with: perftool tune --resume {self.store.folder}")
        raise typer.Exit(code)

    def go_trace(self, measure: Measure, taken: Sequence[Taken]) -> NoReturn:
        """Measure, which appends the trace to `taken`; write, print, exit. Without a trace nothing is kept."""
        from perftool.analysis.recommend import conclude
        from perftool.records import to_json
        from perftool.report.terminal import render_trace
        from perftool.store import StoreError
        from perftool.trace import save

        try:
            code = self._measured(measure)
        except StoreError as error:
            self.store.discard()
            _fail(str(error), NOT_WRITTEN)
        if not taken:
            self.store.discard()
            if code:
                _fail("interrupted before the trace was complete", code)
            _fail(self.session.warnings[-1], BASELINE_FAILED)
        summary = conclude(self.session)
        self._write(summary)
        self._draw(summary)
        if self.unwritten is None:
            with self.writing():
                written = save(self.store, self.session, summary, taken[-1])
        if self.unwritten is not None:
            _fail(self.unwritten, NOT_WRITTEN)
        typer.echo(to_json(written, indent=2).decode() if self.as_json else render_trace(written, width=_width()))
        raise typer.Exit(code)

    def _measured(self, measure: Measure) -> int:
        """Measure; the exit code so far. Ends the program where nothing was measured."""
        from msgspec.structs import replace

        from perftool.measure.rounds import BaselineFailed
        from perftool.store import StoreError

        code = 0
        with _progress(self.quiet) as watcher, _interruptible():
            try:
                self._measure(measure, watcher)
            except KeyboardInterrupt:
                code = INTERRUPTED
                self.session = replace(self.session, interrupted=True)
            except BaselineFailed as failed:
                if not self.session.blocks:
                    self.store.discard()
                    self._fail_to_measure(failed)
                if self.session.command == "check":  # of one side nothing can be told; the record says why
                    code = _code_of_failure(failed)
                    _say(f"perftool: measuring ended early: {failed}")
                else:
                    self.session.warnings.append(f"measuring ended early, since the baseline failed: {failed}")
            except StoreError:  # of a trace, which is told as such
                raise
            except Exception:
                self._tell_what_is_kept()
                raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes a moment, and keeps what was measured
        # A check on another machine than its baseline's only counts.
        if not self.session.blocks and (code or not self.session.counters):
            self.store.discard()
            if not code:
                _fail("there was nothing to measure here: no scenario has another value to try", BAD_INPUT)
            _fail("interrupted before anything was measured", code)
        return code

    def _measure(self, measure: Measure, watcher: _Watcher) -> None:
        from perftool.measure.survey import open_lab
        from perftool.store import StoreError

        def append(record: Record) -> None:
            """A full disk ends the writing, not the measuring: the summary still goes to the terminal."""
            if self.unwritten is None:
                try:
                    self.store.append(record)
                except StoreError as error:
                    self.unwritten = str(error)

        with self.lock:
            append(self.session)
            opened = open_lab(
                self.session,
                self.scenarios,
                scenario_files=self.scenario_files,
                launch_bytes=self.launch_bytes,
                append=append,
                watcher=watcher,
            )
            with opened as lab:
                try:
                    measure(lab, self.scenarios, self.context)
                finally:
                    self.session = lab.session

    def _write(self, summary: Summary) -> None:
        """What others read: the session, the summary, and what is recommended."""
        from perftool.records import RecommendedSettings, to_json

        if self.unwritten is not None:
            return
        with self.writing():
            self.store.finish(self.session)
            self.store.write("summary.json", to_json(summary, indent=2))
            if summary.recommendation is not None:
                # All that was measured: the baseline may have been moved by -s, or by the workload.
                measured = {**summary.baseline.settings, **summary.recommendation.settings}
                recommended = RecommendedSettings(workload=summary.workload, settings=measured)
                self.store.write("recommended.json", to_json(recommended, indent=2))
                self.store.write("recommended.py", summary.recommendation.script)

    def _tell_what_is_kept(self) -> None:
        """After a fault of the program."""
        if self.session.blocks:
            _say(f"perftool: what was measured is kept in {self.store.folder}; perftool report reads it")
        else:
            self._leave()

    def _fail_to_measure(self, failed: BaselineFailed) -> NoReturn:
        what = "a side" if self.session.command == "check" else "the baseline"
        _fail(f"{what} could not be measured: {failed}", _code_of_failure(failed))

    def remember(self, file: Path, check: Check) -> None:
        """Add a check to a history."""
        from perftool.analysis.gate import history_entry
        from perftool.store import append_history

        entry = history_entry(self.session, check)
        if entry is not None and not self.session.interrupted:
            with self.writing_elsewhere():
                append_history(file, entry)

    def _draw(self, summary: Summary) -> None:
        from perftool.report import html, markdown

        if self.unwritten is not None:
            return
        with self.writing():
            self.store.write("report.md", markdown.render(summary))
            self.store.write("report.html", html.render(self.session, summary))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Where the disk may refuse: that is told at the end."""
        from perftool.store import StoreError

        try:
            yield
        except StoreError as error:
            self.unwritten = str(error)

    @contextmanager
    def writing_elsewhere(self) -> Iterator[None]:
        """The same of a file beside the results, which are written all the same."""
        from perftool.store import StoreError

        try:
            yield
        except StoreError as error:
            self.unwritten_elsewhere = str(error)


# ------------------------------------------------------------------------------------------------------------- input


def _parse_settings(given: Sequence[str]) -> Settings:
    """`NAME=VALUE` and `@FILE` as settings; ends the program for anything else."""
    from perftool.records import RecommendedSettings, SchemaError, from_json

    settings: Settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if text.startswith("@"):
            try:
                settings.update(from_json(Path(text[1:]).read_bytes(), RecommendedSettings).settings)
            except OSError as error:
                _fail(f"-s {text}: {text[1:]} cannot be read ({error.strerror})", BAD_INPUT)
            except SchemaError as error:
                _fail(f"-s {text}: {error}", BAD_INPUT)
        elif equals and name and value:
            settings[name] = value
        else:
            _fail(f"-s takes NAME=VALUE or @recommended.json, not '{text}'", BAD_INPUT)
    return settings


def _goal(
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
        _fail(f"--objective takes {', '.join(objectives)}, not '{objective}'", BAD_INPUT)
    sizes = {"--max-host-memory": max_host_memory, "--max-device-memory": max_device_memory}
    limits: dict[str, int | None] = {}
    for option, text in sizes.items():
        try:
            limits[option] = None if text is None else bytes_of(text)
        except ValueError as error:
            _fail(f"{option}: {error}", BAD_INPUT)
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


def _discover(files: Sequence[Path] | None) -> Scenarios:
    from perftool.scenario import ScenarioError, discover

    try:
        return discover(list(files or []))
    except ScenarioError as error:
        _fail(str(error), BAD_INPUT)


def _survey(
    workload: str, device: str, seed: int, budget_s: float, quiet: bool, lock: ExitStack | None = None
) -> tuple[Described, int, Fitness | None]:
    """What the workload and the machine are, the memory that took, and what else the machine was doing before.

    lock: gets the measuring lock before the machine is looked at, so that the memory that another perftool holds while
        it measures is not taken for used, nor its measurements are disturbed. Without it nobody measures, and the
        machine is not watched.
    """
    from perftool.measure.survey import survey

    with _looking(workload, device, quiet, lock) as (watcher, fitness):
        watcher.update(f"building {workload}", 0.0, 0.0)
        described, launch_bytes = survey(workload, device, seed, budget_s)
        return described, launch_bytes, _of_device(fitness, described.machine)


def _of_device(fitness: Fitness | None, machine: Machine) -> Fitness | None:
    """Without the GPU where "auto" has turned out to be the CPU: only a worker knows whether torch can use a GPU."""
    from msgspec.structs import replace

    return fitness if fitness is None or machine.device != "cpu" else replace(fitness, device=None)


@contextmanager
def _looking(
    workload: str, device: str, quiet: bool, lock: ExitStack | None
) -> Iterator[tuple[_Watcher, Fitness | None]]:
    """Where a workload is built for the first time: its errors are the user's to mend. `lock` as for `_survey`."""
    from perftool.measure.probes.machine import read_fitness
    from perftool.measure.rounds import BaselineFailed
    from perftool.measure.survey import UnusableError
    from perftool.measure.worktree import RevisionError
    from perftool.store import measuring_lock
    from perftool.workload import WorkloadError, check_reference

    try:
        check_reference(workload)
        with _progress(quiet) as watcher, _interruptible():
            fitness = None
            if lock is not None:
                lock.enter_context(measuring_lock(_say))
                watcher.update("looking at the machine", 0.0, 0.0)
                fitness = read_fitness(FITNESS_WINDOW_S, device)
            yield watcher, fitness
    except (RevisionError, UnusableError, WorkloadError) as error:
        _fail(str(error), BAD_INPUT)
    except BaselineFailed as error:
        _fail(f"the baseline could not be measured: {error}", _code_of_failure(error))
    except KeyboardInterrupt:
        _fail("interrupted before anything was measured", INTERRUPTED)


def _open_results(out: Path, workload: str, command: Command) -> SessionStore:
    from perftool.store import StoreError, open_results

    try:
        return open_results(out, workload, command)
    except StoreError as error:
        _fail(str(error), NOT_WRITTEN)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: everything stopped, what was measured kept.

    One that is ignored stays so: `nohup` wants a command that outlives its terminal.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------ output


_NO_DIGITS = str.maketrans("", "", "0123456789")


class _Watcher:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing where it is not wanted."""

    LINE_EVERY_S = 10.0  # and whenever something else is done

    def __init__(self, progress: Progress | None, lines: bool) -> None:
        self._progress, self._lines = progress, lines
        self._task = progress.add_task("", total=None) if progress else None
        self._said_s = -self.LINE_EVERY_S
        self._phase = ""
        self.standings: Sequence[Standing] = ()

    def show(self, standings: Sequence[Standing]) -> None:
        from perftool.report.wording import standing_text

        self.standings = standings
        if self._lines and standings:
            _say(f"best so far: {standing_text(standings[0])}")

    def update(self, text: str, done_s: float, left_s: float) -> None:
        from perftool.units import duration

        left = f"about {duration(left_s * 1e9)} left" if left_s else ""
        if self._progress is not None and self._task is not None:
            total_s = done_s + left_s or None
            self._progress.update(self._task, description=text, completed=done_s, total=total_s, left=left)
        phase = text.translate(_NO_DIGITS)
        if self._lines and (phase != self._phase or done_s - self._said_s >= self.LINE_EVERY_S):
            self._said_s, self._phase = done_s, phase
            _say(f"{text}; {left}" if left else text)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Watcher]:
    if quiet or not sys.stderr.isatty():
        yield _Watcher(None, lines=not quiet)
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    from perftool.report.terminal import standings_table

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
    )
    progress = Progress(*columns)
    watcher = _Watcher(progress, lines=False)

    def drawn() -> Group:
        return Group(*([standings_table(watcher.standings)] if watcher.standings else []), progress)

    with Live(get_renderable=drawn, console=Console(stderr=True), transient=True):
        yield watcher


def _rendered(session: Session, summary: Summary, form: Format) -> str:
    from perftool.records import to_json
    from perftool.report import html, markdown, terminal

    match form:
        case Format.json:
            return to_json(summary, indent=2).decode()
        case Format.markdown:
            return markdown.render(summary)
        case Format.html:
            return html.render(session, summary)
        case Format.terminal:
            return terminal.render(summary, width=_width(), colour=sys.stdout.isatty())


def _rendered_beside(found: SideBySide, form: Format) -> str:
    from perftool.records import to_json
    from perftool.report import html, markdown, terminal

    match form:
        case Format.json:
            return to_json(found, indent=2).decode()
        case Format.markdown:
            return markdown.render_beside(found)
        case Format.html:
            return html.render_beside(found)
        case Format.terminal:
            return terminal.render_beside(found, width=_width(), colour=sys.stdout.isatty())


def _width() -> int:
    from shutil import get_terminal_size

    return min(120, get_terminal_size((80, 24)).columns)


def _print(text: str) -> None:
    """To stdout. Whoever read it may have gone: that must not cost the files, nor change the exit code."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is still buffered would fail again at the end


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _code_of_failure(failed: BaselineFailed) -> int:
    """A side that runs the other one's code can be mended by the user."""
    return BAD_INPUT if failed.kind == "tree" else BASELINE_FAILED


def _refuse(text: str) -> NoReturn:
    """From within the checks of a run, which clean up."""
    from perftool.scenario import ScenarioError

    raise ScenarioError(text)


def _fail(text: str, code: int) -> NoReturn:
    _say(f"perftool: {text}")
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
