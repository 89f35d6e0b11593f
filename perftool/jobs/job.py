"""What a command is: a job that is prepared, measures, and leaves results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.errors import INTERRUPTED, NOT_WRITTEN
from perftool.jobs.front import Front, Measured
from perftool.jobs.look import looked
from perftool.jobs.options import Options
from perftool.jobs.results import Results
from perftool.measure.footprint import Footprint
from perftool.measure.lab import BaselineFailed, Lab
from perftool.measure.scripted import Sandboxes
from perftool.measure.survey import new_session
from perftool.records import Command, Goal, Session, Summary
from perftool.scenario import Context, Scenarios
from perftool.store import open_results, shown
from perftool.target import name_of


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a job is prepared with. sandboxes: where a command of the user's lives. held: what ends with the measuring,
    such as the machine's lock."""

    scenarios: Scenarios
    front: Front
    sandboxes: Sandboxes
    held: ExitStack


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a job measures with: its session, in which nothing is measured yet, and what that rests on.

    footprint: what a launch takes of the memory.
    """

    session: Session
    scenarios: Scenarios
    context: Context
    footprint: Footprint


Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Made]):
    """What was measured. made: what `measure` returned, None where it did not come to its end.

    exit_code: of what ended it early, otherwise 0.
    """

    session: Session
    made: Made | None
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job comes to. unwritten: why results are not on disk, as a sentence."""

    summary: Summary
    exit_code: int
    unwritten: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[Made]):
    """One command. Its steps raise what the modules below raise, or PerftoolError."""

    options: Options
    command: ClassVar[Command]
    subject: ClassVar[str] = "the baseline"  # without which nothing can be measured

    @property
    def names(self) -> list[str]:
        """The scenarios that its input names."""
        return list(self.options.settings)

    def open(self, out: Path) -> Results:
        """Where its results go."""
        return Results(open_results(out, name_of(self.options.target), self.command))

    def prepare(self, bench: Bench) -> Ready:
        """Look at what is to be measured. Everything that can be wrong with the input is found here."""
        return self.fresh(bench)

    def fresh(self, bench: Bench, goal: Goal | None = None) -> Ready:
        """A new session."""
        options = self.options
        look = looked(
            options.target, options.device, options.seed, options.budget_s, bench.front, bench.sandboxes, bench.held
        )
        session = new_session(
            look.described,
            bench.scenarios,
            fitness=look.fitness,
            command=self.command,
            arguments=options.arguments,
            settings=options.settings,
            seed=options.seed,
            budget_s=options.budget_s,
            goal=goal,
            scenario_files=options.scenario_files,
        )
        return Ready(session=session, scenarios=bench.scenarios, context=look.context, footprint=look.footprint)

    @abstractmethod
    def measure(self, lab: Lab, ready: Ready) -> Made:
        """Fill the session. May be interrupted at any moment."""

    def cut_short(self, failed: BaselineFailed, session: Session, front: Front) -> tuple[Session, int]:
        """The session and the exit code where measuring ended early, after something was measured."""
        told = f"measuring ended early, since the baseline failed: {failed}"
        return replace(session, warnings=[*session.warnings, told]), 0

    def finish(self, done: Done[Made], results: Results, front: Front) -> Outcome:
        """Write what was measured, and tell it."""
        session, options = done.session, self.options
        summary = conclude(session, None if options.out is None else shown(results.folder))
        results.write(session, summary)
        front.answer(Measured(session, summary))
        code = done.exit_code or self.conclude(session, summary, front)
        results.draw(session, summary)  # last, since a fault in drawing must not cost the answer
        if results.unwritten is not None:
            front.say(f"perftool: {results.unwritten}")
            return Outcome(summary=summary, exit_code=code or NOT_WRITTEN, unwritten=results.unwritten)
        if options.out is not None:
            front.say(f"report: {results.folder / 'report.html'}; for a pull request, report.md beside it")
            if code == INTERRUPTED and (again := self.again(results.folder)) is not None:
                front.say(f"go on with: {again}")
        return Outcome(summary=summary, exit_code=code)

    def conclude(self, session: Session, summary: Summary, front: Front) -> int:
        """What follows from the answer; the exit code."""
        return 0

    def again(self, folder: Path) -> str | None:
        """The command line that goes on with an interrupted session; None where nothing does."""
        return None
