"""A trace of some steps of one variant. Without a trace nothing is kept."""

from __future__ import annotations

from dataclasses import dataclass

from perftool.analysis.recommend import conclude
from perftool.errors import NotMeasured, NotWritten
from perftool.jobs.front import Front
from perftool.jobs.job import Done, Job, Outcome, Ready
from perftool.jobs.results import Results
from perftool.measure.lab import Lab
from perftool.trace import Taken, save, trace


@dataclass(frozen=True, kw_only=True)
class Trace(Job[Taken]):
    """steps: how many to trace; by default as many as fit."""

    command = "trace"
    steps: int | None = None

    def measure(self, lab: Lab, ready: Ready) -> Taken:
        return trace(lab, steps=self.steps)

    def finish(self, done: Done[Taken], results: Results, front: Front) -> Outcome:
        session = done.session
        if done.made is None:
            results.discard()
            if done.exit_code:
                raise KeyboardInterrupt("interrupted before the trace was complete")
            raise NotMeasured(session.warnings[-1])
        summary = conclude(session)
        results.write(session, summary)
        results.draw(session, summary)
        if results.unwritten is not None:
            raise NotWritten(results.unwritten)
        front.answer(save(results.store, session, summary, done.made))
        return Outcome(summary=summary, exit_code=done.exit_code)
