"""How a job is run: prepared, measured, finished. What was measured is kept whatever happens."""

from __future__ import annotations

from contextlib import ExitStack, closing

from msgspec.structs import replace

from perftool.errors import INTERRUPTED, BadInput, PerftoolError
from perftool.jobs.failures import not_measured, told
from perftool.jobs.front import Front, Silent
from perftool.jobs.job import Bench, Done, Job, Made, Outcome, Ready
from perftool.jobs.look import check_names, check_target, offered, opened
from perftool.jobs.results import Results
from perftool.measure.lab import BaselineFailed
from perftool.measure.ledger import Ledger
from perftool.measure.scripted import Sandboxes
from perftool.records import Session
from perftool.store import StoreError
from perftool.temporary import temporary_folder


def run(job: Job[Made], front: Front | None = None) -> Outcome:
    """Do a job.

    Raises PerftoolError for what ends it before it has an answer, and KeyboardInterrupt where it was interrupted before
    anything was measured. Interrupted later, it comes to an outcome of what was measured.
    """
    front, options = front or Silent(), job.options
    with ExitStack() as kept, told():
        # What needs no folder to be found wrong is found before there is one.
        check_target(options.target)
        scenarios = offered(options.target, options.scenario_files)
        check_names(job.names, scenarios, options.target)
        out = options.out or kept.enter_context(temporary_folder())
        results = job.open(out)
        with ExitStack() as held:
            sandboxes = held.enter_context(closing(Sandboxes(front.say, ignored=[out])))
            try:
                ready = job.prepare(Bench(scenarios=scenarios, front=front, sandboxes=sandboxes, held=held))
            except BaseException:  # also a fault of the program: no empty folder is left
                results.discard()
                raise
            done = _measured(job, ready, results, front, sandboxes)
        front.measured()
        session = done.session
        # A check on another machine than its baseline's only counts.
        if not session.blocks and (done.exit_code or not session.counters):
            results.discard()
            if done.exit_code:
                raise KeyboardInterrupt("interrupted before anything was measured")
            raise BadInput("there was nothing to measure here: no scenario has another value to try")
        try:
            return job.finish(done, results, front)
        except (PerftoolError, StoreError):
            raise
        except Exception:
            _tell_what_is_kept(session, results, front)
            raise


def _measured(job: Job[Made], ready: Ready, results: Results, front: Front, sandboxes: Sandboxes) -> Done[Made]:
    session = ready.session
    made: Made | None = None
    code = 0
    try:
        with front.watching() as watcher:
            ledger = Ledger(session, results.append)
            lab_of = opened(
                job.options.target,
                ledger,
                ready.scenarios,
                scenario_files=job.options.scenario_files,
                footprint=ready.footprint,
                watcher=watcher,
                sandboxes=sandboxes,
            )
            with lab_of as lab:
                try:
                    made = job.measure(lab, ready)
                finally:
                    session = ledger.session
    except KeyboardInterrupt:
        code = INTERRUPTED
        session = replace(session, interrupted=True)
    except BaselineFailed as failed:
        if not session.blocks:
            results.discard()
            raise not_measured(failed, job.subject) from failed
        session, code = job.cut_short(failed, session, front)
    except StoreError:  # of a trace: without it nothing is kept
        results.discard()
        raise
    except Exception:
        _tell_what_is_kept(session, results, front)
        raise
    return Done(session=session, made=made, exit_code=code)


def _tell_what_is_kept(session: Session, results: Results, front: Front) -> None:
    """After a fault of the program."""
    if session.blocks:
        front.say(f"perftool: what was measured is kept in {results.folder}; perftool report reads it")
    else:
        results.discard()
