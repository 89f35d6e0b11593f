"""The command line: the only file that prints or exits.

Heavy imports stay inside the commands, so that `perftool --help` is immediate.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from perftool import __version__
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from types import FrameType

    from rich.progress import Progress

    from perftool.measure.messages import Described
    from perftool.measure.rounds import Lab
    from perftool.records import Command, Record, Session, Settings, Summary
    from perftool.scenario import Context, Scenarios
    from perftool.store import SessionStore

BAD_INPUT = 2
BASELINE_FAILED = 4
NOT_WRITTEN = 5
INTERRUPTED = 130

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
    json = "json"


def main() -> None:
    """Entry point of the `perftool` command."""
    if sys.path and sys.path[0] == "":
        # A folder `scenarios/` of the user's must not shadow the built-in one.
        sys.path.append(sys.path.pop(0))
    app()


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
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="also vary what changes the optimisation: batch_size")
    ] = None,
    device: DeviceOption = "auto",
    budget: BudgetOption = 90,
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

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        search(lab, offer_of(scenarios, context, lab.session.baseline, allow or []))

    run = _Run("tune", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
    run.check(lambda scenarios, _: check_names(allow or [], scenarios))
    run.go(measure)


@app.command()
def compare(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
    variants: Annotated[
        list[str] | None,
        typer.Argument(help="amp, amp=bf16, or amp=bf16,optimizer_kernel=fused; default: every scenario alone"),
    ] = None,
    device: DeviceOption = "auto",
    budget: BudgetOption = 90,
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
    from perftool.scenario import variants_of

    wanted: list[Settings] = []

    def check(scenarios: Scenarios, context: Context) -> None:
        wanted.extend(variants_of(variants or [], scenarios, context, run.session.baseline))

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        numbers = [number for number in dict.fromkeys(lab.variant(one) for one in wanted) if number]
        measure_repeatedly(
            lab, "measure", numbers, budget_s=budget, decided=lambda: all_decided(lab.session, numbers, ["measure"])
        )

    run = _Run("compare", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
    run.check(check)
    run.go(measure)


@app.command()
def profile(
    workload: WorkloadArgument = DEFAULT_WORKLOAD,
    device: DeviceOption = "auto",
    budget: BudgetOption = 90,
    out: OutOption = Path("results"),
    seed: SeedOption = 0,
    settings: SetOption = None,
    scenario: ScenarioOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure one variant: step time, jitter, memory, throughput, data wait."""
    from perftool.measure.repeat import measure_repeatedly

    def measure(lab: Lab, scenarios: Scenarios, context: Context) -> None:
        measure_repeatedly(lab, "measure", [], budget_s=budget, decided=lambda: True)

    run = _Run("profile", workload, device, budget, out, seed, settings, scenario, as_json, quiet)
    run.go(measure)


@app.command()
def report(
    session: Annotated[Path, typer.Argument(help="a session's folder, or its session.json")],
    form: Annotated[Format, typer.Option("--format", help="what to write")] = Format.terminal,
) -> None:
    """Draw a saved session again; needs neither torch nor a GPU."""
    from perftool.analysis.recommend import conclude
    from perftool.store import StoreError, load_session

    try:
        summary = conclude(load_session(session))
    except StoreError as error:
        _fail(str(error), BAD_INPUT)
    typer.echo(_rendered(summary, form))


@app.command()
def scenarios(
    name: Annotated[str | None, typer.Argument(help="one scenario, in full")] = None,
    workload: Annotated[str, typer.Option("--workload", help="whose values to list")] = DEFAULT_WORKLOAD,
    device: DeviceOption = "auto",
    scenario: ScenarioOption = None,
) -> None:
    """What can be varied here; what cannot, and why."""
    from perftool.report.terminal import render_scenario, render_scenarios
    from perftool.scenario import Context, ScenarioError, check_names

    found = _discover(scenario)
    try:
        check_names([name] if name else [], found)
    except ScenarioError as error:
        _fail(str(error), BAD_INPUT)
    described, _ = _survey(workload, device, seed=0, budget_s=0, quiet=False)
    context = Context(machine=described.machine, workload=described.workload)
    if name is not None:
        typer.echo(render_scenario(found[name].described(context), width=_width()))
        return
    typer.echo(render_scenarios([one.described(context) for one in found.values()], width=_width()))


@app.command()
def machine(device: DeviceOption = "auto") -> None:
    """What this machine is, and how fit it is for measuring now."""
    from perftool.analysis.fitness import rate
    from perftool.measure.probes.machine import describe_machine, read_fitness
    from perftool.measure.worker import DeviceError, resolve_device
    from perftool.report.terminal import render_machine

    try:
        described = describe_machine(resolve_device(device))
    except DeviceError as error:
        _fail(str(error), BAD_INPUT)
    fitness = read_fitness()
    typer.echo(render_machine(described, fitness, rate(fitness), width=_width()))


# -------------------------------------------------------------------------------------------------------- one session


Measure = Callable[["Lab", "Scenarios", "Context"], None]


class _Run:
    """One measuring command, from its options to its files and its exit code."""

    def __init__(
        self,
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
    ) -> None:
        """Everything that can be wrong with the input is found here, before anything is measured."""
        from perftool.measure.survey import new_session
        from perftool.scenario import Context

        self.as_json, self.quiet = as_json, quiet
        self.unwritten: str | None = None
        self.scenario_files = list(scenario_files or [])
        self.scenarios = _discover(self.scenario_files)
        moved = _parse_settings(settings or [])
        self.store = _open_results(out, workload, command)
        with self._input():
            described, self.launch_bytes = _survey(workload, device, seed, budget_s, quiet)
            self.context = Context(machine=described.machine, workload=described.workload)
            self.session: Session = new_session(
                described,
                self.scenarios,
                command=command,
                arguments=sys.argv[1:],
                settings=moved,
                seed=seed,
                budget_s=budget_s,
            )

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
            self.store.discard()
            _fail(str(error), BAD_INPUT)
        except typer.Exit:
            self.store.discard()
            raise

    def go(self, measure: Measure) -> NoReturn:
        """Measure, write, print, exit. What was measured is kept whatever happens."""
        from msgspec.structs import replace

        from perftool.analysis.recommend import conclude
        from perftool.measure.rounds import BaselineFailed

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
                    _fail(f"the baseline could not be measured: {failed}", BASELINE_FAILED)
                self.session.warnings.append(f"measuring ended early, since the baseline failed: {failed}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes a moment, and keeps what was measured
        if not self.session.blocks:
            self.store.discard()
            _fail("interrupted before anything was measured", code)
        summary = conclude(self.session)
        self._write(summary)
        typer.echo(_rendered(summary, Format.json if self.as_json else Format.terminal))
        if self.unwritten is not None:
            _fail(self.unwritten, code or NOT_WRITTEN)
        _say(f"report: {self.store.folder / 'report.md'}")
        raise typer.Exit(code)

    def _measure(self, measure: Measure, watcher: _Watcher) -> None:
        from perftool.measure.survey import open_lab
        from perftool.store import StoreError, measuring_lock

        def append(record: Record) -> None:
            """A full disk ends the writing, not the measuring: the summary still goes to the terminal."""
            if self.unwritten is None:
                try:
                    self.store.append(record)
                except StoreError as error:
                    self.unwritten = str(error)

        with measuring_lock(_say):
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
                measure(lab, self.scenarios, self.context)

    def _write(self, summary: Summary) -> None:
        from perftool.records import RecommendedSettings, to_json
        from perftool.report import markdown
        from perftool.store import StoreError

        if self.unwritten is not None:
            return
        try:
            self.store.finish(self.session)
            self.store.write("summary.json", to_json(summary, indent=2))
            self.store.write("report.md", markdown.render(summary))
            if summary.recommendation is not None:
                # All that was measured: the baseline may have been moved by -s, or by the workload.
                measured = {**summary.baseline.settings, **summary.recommendation.settings}
                recommended = RecommendedSettings(workload=summary.workload, settings=measured)
                self.store.write("recommended.json", to_json(recommended, indent=2))
                self.store.write("recommended.py", summary.recommendation.script)
        except StoreError as error:
            self.unwritten = str(error)


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
            except (OSError, SchemaError) as error:
                _fail(f"-s {text}: {error}", BAD_INPUT)
        elif equals and name and value:
            settings[name] = value
        else:
            _fail(f"-s takes NAME=VALUE or @recommended.json, not '{text}'", BAD_INPUT)
    return settings


def _discover(files: Sequence[Path] | None) -> Scenarios:
    from perftool.scenario import ScenarioError, discover

    try:
        return discover(list(files or []))
    except ScenarioError as error:
        _fail(str(error), BAD_INPUT)


def _survey(workload: str, device: str, seed: int, budget_s: float, quiet: bool) -> tuple[Described, int]:
    from perftool.measure.rounds import BaselineFailed
    from perftool.measure.survey import UnusableError, survey

    try:
        with _progress(quiet) as watcher, _interruptible():
            watcher.update(f"building {workload}", 0.0, 0.0)
            return survey(workload, device, seed, budget_s)
    except UnusableError as error:
        _fail(str(error), BAD_INPUT)
    except BaselineFailed as error:
        _fail(f"the baseline could not be measured: {error}", BASELINE_FAILED)
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
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: everything stopped, what was measured kept."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------ output


class _Watcher:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing where it is not wanted."""

    LINE_EVERY_S = 10.0

    def __init__(self, progress: Progress | None, lines: bool) -> None:
        self._progress, self._lines = progress, lines
        self._task = progress.add_task("", total=None) if progress else None
        self._said_s = -self.LINE_EVERY_S

    def update(self, text: str, done_s: float, left_s: float) -> None:
        from perftool.units import duration

        left = f"about {duration(left_s * 1e9)} left" if left_s else ""
        if self._progress is not None and self._task is not None:
            total_s = done_s + left_s or None
            self._progress.update(self._task, description=text, completed=done_s, total=total_s, left=left)
        elif self._lines and done_s - self._said_s >= self.LINE_EVERY_S:
            self._said_s = done_s
            _say(f"{text}; {left}" if left else text)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Watcher]:
    if quiet or not sys.stderr.isatty():
        yield _Watcher(None, lines=not quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Watcher(progress, lines=False)


def _rendered(summary: Summary, form: Format) -> str:
    from perftool.records import to_json
    from perftool.report import markdown, terminal

    match form:
        case Format.json:
            return to_json(summary, indent=2).decode()
        case Format.markdown:
            return markdown.render(summary)
        case Format.terminal:
            return terminal.render(summary, width=_width(), colour=sys.stdout.isatty())


def _width() -> int:
    from shutil import get_terminal_size

    return min(120, get_terminal_size((80, 24)).columns)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _fail(text: str, code: int) -> NoReturn:
    _say(f"perftool: {text}")
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
