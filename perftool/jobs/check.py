"""Whether a training has become slower than at a revision, or than what was stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perftool import records
from perftool.analysis.baseline import stored, unstorable
from perftool.analysis.gate import decision, history_entry
from perftool.errors import NOT_WRITTEN, REGRESSION, UNDECIDED, BadInput, NotWritten
from perftool.gate import beside_calibration, check, described, new_check
from perftool.jobs.failures import not_measured
from perftool.jobs.front import Front
from perftool.jobs.job import Bench, Job, Ready
from perftool.jobs.look import looking, of_device, side_surveyed
from perftool.jobs.options import RESULTS, Options
from perftool.measure.lab import BaselineFailed, Lab
from perftool.measure.worktree import both_sides
from perftool.records import Session, Side, StoredBaseline, Summary
from perftool.scenario import Context
from perftool.store import StoreError, append_history, baseline_path, load_baseline, save_baseline, try_out
from perftool.target import Script, reference_of

CODES = {"passed": 0, "regression": REGRESSION, "undecided": UNDECIDED}


@dataclass(frozen=True, kw_only=True)
class Check(Job[None]):
    """Two sides of a training, in turns.

    against: the revision that must not be faster; None compares with calibration kernels, to be stored in `file` or,
    with what is `expected`, to be compared with what was. link: what git ignores and the revision needs.
    history: a file that gets the ratios. strict: an unexplained improvement fails, too.
    """

    command = "check"
    subject = "a side"
    against: str | None
    file: Path
    expected: StoredBaseline | None
    link: tuple[str, ...] = ()
    history: Path | None = None
    strict: bool = False

    def prepare(self, bench: Bench) -> Ready:
        """The two sides are there until measuring is over."""
        options = self.options
        with looking(options.device, bench.front, bench.held) as (watcher, fitness):
            watcher.update("setting up both sides", 0.0, 0.0)
            sides = bench.held.enter_context(self._sides())
            bench.held.callback(bench.sandboxes.close)  # they look whether the sides' trees are as they were
            look = partial(side_surveyed, options.target, options.device, options.seed, bench.sandboxes)
            found, footprint = described(sides, look)
        here = found[1]
        session = new_check(
            sides,
            found,
            bench.scenarios,
            reference=reference_of(options.target),
            expected=self.expected,
            arguments=options.arguments,
            settings=options.settings,
            seed=options.seed,
            budget_s=options.budget_s,
            fitness=of_device(fitness, here.machine),
            scenario_files=[str(file.resolve()) for file in options.scenario_files],
        )
        context = Context(machine=here.machine, workload=here.workload)
        return Ready(session=session, scenarios=bench.scenarios, context=context, footprint=footprint)

    def _sides(self) -> AbstractContextManager[list[Side]]:
        target = self.options.target
        if self.against is None:
            return nullcontext(beside_calibration(reference_of(target)))
        return both_sides(target, self.against, self.link)

    def measure(self, lab: Lab, ready: Ready) -> None:
        check(lab)

    def cut_short(self, failed: BaselineFailed, session: Session, front: Front) -> tuple[Session, int]:
        """Of one side nothing can be told; the record says why."""
        front.say(f"perftool: measuring ended early: {failed}")
        return session, not_measured(failed).exit_code

    def conclude(self, session: Session, summary: Summary, front: Front) -> int:
        found = summary.check
        if found is None:
            return _store(session, self.file, front)
        unwritten = 0 if self.history is None else _remember(session, found, self.history, front)
        decided = decision(found, strict=self.strict)
        if decided != decision(found, strict=False):
            front.say("perftool: failed by --strict: something got better, and nobody said why")
        return CODES[decided] or unwritten


def check_of(
    options: Options,
    *,
    against: str | None = None,
    baseline: Path | None = None,
    write_baseline: bool = False,
    link: Sequence[str] = (),
    history: Path | None = None,
    strict: bool = False,
) -> Check:
    """A check against a revision, or against what was stored in `baseline`, or one that stores it.

    Raises BadInput for what does not go together or cannot be read, NotWritten for files that could not be written.
    """
    if (against is not None) == (baseline is not None or write_baseline):
        raise BadInput("check takes --against REV, or --baseline FILE, or --write-baseline")
    if against is None and (link or history is not None):
        raise BadInput("--link and --history go with --against REV")
    if against is None and isinstance(options.target, Script):
        raise BadInput("--baseline and --write-baseline are for a WORKLOAD; check a command with --against REV")
    reference = reference_of(options.target)
    expected = None if baseline is None or write_baseline else _expected(baseline, reference)
    file = baseline or baseline_path(options.out or RESULTS, reference)
    try:
        if history is not None:
            try_out(history, "--history", appends=True)
        if write_baseline:
            try_out(file, "--baseline", appends=False)
    except StoreError as error:
        raise NotWritten(str(error)) from error
    return Check(
        options=options,
        against=against,
        file=file,
        expected=expected,
        link=tuple(link),
        history=history,
        strict=strict,
    )


def _expected(baseline: Path, reference: str) -> StoredBaseline:
    """A stored baseline of this workload. Raises BadInput for anything else."""
    try:
        expected = load_baseline(baseline)
    except StoreError as error:
        raise BadInput(str(error)) from error
    if expected.workload != reference:
        raise BadInput(f"--baseline {baseline}: it is of {expected.workload}, not of {reference}")
    return expected


def _remember(session: Session, found: records.Check, file: Path, front: Front) -> int:
    """Add a check to a history; the exit code."""
    entry = history_entry(session, found)
    if entry is None:
        front.say(f"perftool: {file} got no point, since the check was not measured to the end")
        return 0
    return _wrote(partial(append_history, file, entry), front)


def _store(session: Session, file: Path, front: Front) -> int:
    """Write what was measured for later checks; the exit code."""
    found = stored(session)
    if found is None:
        front.say(f"perftool: nothing was stored: {unstorable(session)}")
        return UNDECIDED
    code = _wrote(partial(save_baseline, file, found), front)
    if code == 0:
        launches = len(found.metrics["throughput"].log_values)
        front.say(f"baseline: {file}, from {launches} launches; compare with it by")
        own, side = session.workload.settings, session.sides[1].settings
        moved = [f"-s {name}={value}" for name, value in side.items() if own.get(name) != value]
        scenarios = [f"--scenario {one}" for one in session.scenario_files]
        command = ["perftool check", session.workload.reference, f"--baseline {file}", *moved, *scenarios]
        front.say(f"    {' '.join(command)}")
    return code


def _wrote(write: Callable[[], None], front: Front) -> int:
    """Write a file beside the results; the exit code."""
    try:
        write()
    except StoreError as error:
        front.say(f"perftool: {error}")
        return NOT_WRITTEN
    return 0
