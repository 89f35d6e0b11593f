"""The run of one measuring command: from its options to its files and its exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from perftool.cli.inputs import discover, parse_settings
from perftool.cli.interrupts import interruptible
from perftool.cli.look import looking, of_device, surveyed
from perftool.cli.output import (
    BAD_INPUT,
    BASELINE_FAILED,
    INTERRUPTED,
    NOT_WRITTEN,
    UNDECIDED,
    Format,
    code_of_failure,
    fail,
    print_out,
    rendered,
    say,
    width,
)
from perftool.cli.progress import Watcher, watching
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from perftool.measure.lab import BaselineFailed, Lab
    from perftool.measure.messages import Described
    from perftool.records import Check, Command, Fitness, Goal, Record, Session, Settings, Side, StoredBaseline, Summary
    from perftool.scenario import Context, Scenarios
    from perftool.store import SessionStore
    from perftool.trace import Taken

Measure = Callable[["Lab", "Scenarios", "Context"], None]


class Run:
    """One measuring command, from its options to its files and its exit code."""

    def __init__(
        self,
        store: SessionStore,
        scenario_files: Sequence[Path],
        scenarios: Scenarios,
        as_json: bool,
        quiet: bool,
    ) -> None:
        self.store, self.as_json, self.quiet = store, as_json, quiet
        self.unwritten: str | None = None
        self.unwritten_elsewhere: str | None = None  # a file beside the results, which does not cost these
        self.keeps = False  # whether the folder holds a session already
        self.lock = ExitStack()
        self.scenario_files = list(scenario_files)
        self.scenarios = scenarios
        self.session: Session
        self.context: Context
        self.launch_bytes = 0
        self.fitness: Fitness | None = None

    @classmethod
    def _begun(
        cls,
        command: Command,
        workload: str,
        out: Path,
        settings: Sequence[str] | None,
        scenario_files: Sequence[Path] | None,
        as_json: bool,
        quiet: bool,
    ) -> tuple[Run, Settings]:
        """With a folder of its own and no session yet, and what the settings are. What needs no folder to be found
        wrong is found before there is one."""
        files = list(scenario_files or [])
        scenarios, moved = discover(files), parse_settings(settings or [])
        return cls(_open_results(out, workload, command), files, scenarios, as_json, quiet), moved

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
    ) -> Run:
        """A new session. Everything that can be wrong with the input is found before anything is measured.

        named: scenarios that the command's own arguments name, to be told at once where there are none such.
        """
        from perftool.measure.survey import new_session
        from perftool.scenario import check_names

        run, moved = cls._begun(command, workload, out, settings, scenario_files, as_json, quiet)
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
                scenario_files=run.scenario_files,
            )
        return run

    @classmethod
    def resumed(cls, path: Path, workload: str, more_s: float | None, as_json: bool, quiet: bool) -> Run:
        """A session that was interrupted, to go on where it stopped; `more_s` adds to its budget.

        workload: the session's own, or the default where none was given.
        """
        from msgspec.structs import replace

        from perftool.store import StoreError, reopen

        try:
            store, session = reopen(path)
        except StoreError as error:
            fail(str(error), BAD_INPUT)
        if session.command != "tune":
            fail(f"--resume {path}: that is a session of `perftool {session.command}`, not of a search", BAD_INPUT)
        if workload not in (DEFAULT_WORKLOAD, session.workload.reference):
            fail(f"--resume {path}: that is a session of {session.workload.reference}, not of {workload}", BAD_INPUT)
        files = [Path(file) for file in session.scenario_files]
        run = cls(store, files, discover(files), as_json, quiet)
        run.keeps = True
        described = run._look(session.workload.reference, session.machine.device, session.seed, session.budget_s)
        then, now = session.machine, described.machine
        for name in ("cpu_model", "usable_cores", "device_name", "torch_version"):
            if getattr(then, name) != getattr(now, name):
                fail(
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
    ) -> Run:
        """A check of two sides, which are there until the lock is given back."""
        from perftool.gate import described, new_check
        from perftool.scenario import Context, check_names

        run, moved = cls._begun("check", workload, out, settings, scenario_files, as_json, quiet)
        with run._input():
            check_names(moved, run.scenarios)
            with looking(workload, device, quiet, run.lock) as (watcher, fitness):
                watcher.update("setting up both sides", 0.0, 0.0)
                both = run.lock.enter_context(sides)
                found, run.launch_bytes = described(both, device, seed)
            run.context = Context(machine=found[1].machine, workload=found[1].workload)
            run.fitness = of_device(fitness, found[1].machine)
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
                scenario_files=[str(file.resolve()) for file in run.scenario_files],
            )
        return run

    def _look(self, workload: str, device: str, seed: int, budget_s: float) -> Described:
        from perftool.scenario import Context

        described, self.launch_bytes, self.fitness = surveyed(workload, device, seed, budget_s, self.quiet, self.lock)
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
            fail(str(error), BAD_INPUT)
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
            print_out(rendered(self.session, summary, Format.json if self.as_json else Format.terminal))
            code = code or code_of(summary)
            self._draw(summary)  # last, since a fault in drawing must not cost the answer
        except Exception:
            self._tell_what_is_kept()
            raise
        if self.unwritten_elsewhere is not None:
            say(f"perftool: {self.unwritten_elsewhere}")
            code = code or NOT_WRITTEN
        if self.unwritten is not None:
            fail(self.unwritten, code or NOT_WRITTEN)
        say(f"report: {self.store.folder / 'report.html'}; for a pull request, report.md beside it")
        if code == INTERRUPTED and self.session.command == "tune":
            say(f"go on with: perftool tune --resume {self.store.folder}")
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
            fail(str(error), NOT_WRITTEN)
        if not taken:
            self.store.discard()
            if code:
                fail("interrupted before the trace was complete", code)
            fail(self.session.warnings[-1], BASELINE_FAILED)
        summary = conclude(self.session)
        self._write(summary)
        self._draw(summary)
        if self.unwritten is None:
            with self.writing():
                written = save(self.store, self.session, summary, taken[-1])
        if self.unwritten is not None:
            fail(self.unwritten, NOT_WRITTEN)
        print_out(to_json(written, indent=2).decode() if self.as_json else render_trace(written, width=width()))
        raise typer.Exit(code)

    def _measured(self, measure: Measure) -> int:
        """Measure; the exit code so far. Ends the program where nothing was measured."""
        from msgspec.structs import replace

        from perftool.measure.lab import BaselineFailed
        from perftool.store import StoreError

        code = 0
        with watching(self.quiet) as watcher, interruptible():
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
                    code = code_of_failure(failed)
                    say(f"perftool: measuring ended early: {failed}")
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
                fail("there was nothing to measure here: no scenario has another value to try", BAD_INPUT)
            fail("interrupted before anything was measured", code)
        return code

    def _measure(self, measure: Measure, watcher: Watcher) -> None:
        from perftool.measure.ledger import Ledger
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
            ledger = Ledger(self.session, append)
            opened = open_lab(
                ledger,
                self.scenarios,
                scenario_files=self.scenario_files,
                launch_bytes=self.launch_bytes,
                watcher=watcher,
            )
            with opened as lab:
                try:
                    measure(lab, self.scenarios, self.context)
                finally:
                    self.session = ledger.session

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
            say(f"perftool: what was measured is kept in {self.store.folder}; perftool report reads it")
        else:
            self._leave()

    def _fail_to_measure(self, failed: BaselineFailed) -> NoReturn:
        what = "a side" if self.session.command == "check" else "the baseline"
        fail(f"{what} could not be measured: {failed}", code_of_failure(failed))

    def remember(self, file: Path, check: Check) -> None:
        """Add a check to a history."""
        from perftool.analysis.gate import history_entry
        from perftool.store import append_history

        entry = history_entry(self.session, check)
        if entry is None:
            say(f"perftool: {file} got no point, since the check was not measured to the end")
            return
        with self.writing(elsewhere=True):
            append_history(file, entry)

    def store_baseline(self, file: Path) -> int:
        """Write what was measured for later checks; the exit code."""
        from perftool.analysis.baseline import stored, unstorable
        from perftool.store import save_baseline

        found = stored(self.session)
        if found is None:
            say(f"perftool: nothing was stored: {unstorable(self.session)}")
            return UNDECIDED
        with self.writing(elsewhere=True):
            save_baseline(file, found)
            launches = len(found.metrics["throughput"].log_values)
            say(f"baseline: {file}, from {launches} launches; compare with it by")
            own, side = self.session.workload.settings, self.session.sides[1].settings
            moved = [f"-s {name}={value}" for name, value in side.items() if own.get(name) != value]
            scenarios = [f"--scenario {one}" for one in self.session.scenario_files]
            command = ["perftool check", self.session.workload.reference, f"--baseline {file}", *moved, *scenarios]
            say(f"    {' '.join(command)}")
        return 0

    def _draw(self, summary: Summary) -> None:
        from perftool.report import html, markdown

        if self.unwritten is not None:
            return
        with self.writing():
            self.store.write("report.md", markdown.render(summary))
            self.store.write("report.html", html.render(self.session, summary))

    @contextmanager
    def writing(self, *, elsewhere: bool = False) -> Iterator[None]:
        """Where the disk may refuse: that is told at the end.

        elsewhere: a file beside the results, which are written all the same.
        """
        from perftool.store import StoreError

        try:
            yield
        except StoreError as error:
            if elsewhere:
                self.unwritten_elsewhere = str(error)
            else:
                self.unwritten = str(error)


def _open_results(out: Path, workload: str, command: Command) -> SessionStore:
    from perftool.store import StoreError, open_results

    try:
        return open_results(out, workload, command)
    except StoreError as error:
        fail(str(error), NOT_WRITTEN)
