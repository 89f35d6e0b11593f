"""A trace of a few warmed-up steps of one variant, as torch.profiler sees them, bounded in size; and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from perftool import tensorboard
from perftool.analysis.traces import SIZE_MOST_BYTES, calls_that_fit, facts_of
from perftool.measure import messages
from perftool.measure.lab import BaselineFailed, Lab
from perftool.measure.rounds import generation
from perftool.measure.running import Running
from perftool.records import Session, Summary, TraceFacts, TraceReport
from perftool.report import profiles
from perftool.store import SessionStore, StoreError
from perftool.temporary import temporary_folder

TRACE = "trace.json"
PLUGIN_TRACE = "tensorboard/trace.pt.trace.json"  # the plugin knows its files by this ending
UNTRACED_ROUNDS, UNTRACED_S = 30, 2.0  # blocks without tracing before it, for the figures beside the trace
TRACED_S = 10.0  # at most, by default
TRIALS_MOST = 3  # of a number of steps that is not given, until the trace is small enough
READING = 2.0  # times as long as the traced steps take it takes to trace them and to write and read the trace
SLOWEST = 20.0  # times longer than expected that a trace may take before it is given up


@dataclass(frozen=True)
class Taken:
    """A trace as torch.profiler wrote it, read, and what it shows."""

    document: bytes
    events: Mapping[str, Any]
    facts: TraceFacts


def trace(lab: Lab, *, steps: int | None = None) -> Taken:
    """Launch the session's baseline, warm it up, run a few plain blocks, and trace it.

    steps: how many to trace; by default as many as fit into SIZE_MOST_BYTES, TRACED_S and what is left of the budget.
    Raises BaselineFailed where the launch fails, and StoreError where there is no room for temporary files.
    """
    taken: list[Taken] = []

    def traced(running: Running) -> None:
        with temporary_folder() as folder:
            tracer = _Tracer(lab, running, folder / TRACE)
            taken.append(tracer.that_fits() if steps is None else tracer.of(ceil(steps / running.steps_per_call)))

    lab.planned_s = UNTRACED_S + TRACED_S
    generation(lab, "trace", [], budget_s=UNTRACED_S, rounds=UNTRACED_ROUNDS, afterwards=traced)
    if not taken:
        raise BaselineFailed("its script was over before its steps could be traced; let it run for more steps", "ended")
    return taken[-1]


class _Tracer:
    """Traces of one live launch, one after another into the same file."""

    def __init__(self, lab: Lab, running: Running, path: Path) -> None:
        self._lab, self._running, self._path = lab, running, path
        # Of one that is not traced, until one was.
        self._call_s = running.call_s

    def that_fits(self) -> Taken:
        """As many calls as fit, going by what the first one took. One that is too large all the same is told."""
        limit_s = min(TRACED_S, self._lab.left_s)
        taken = self.of(1)
        for _ in range(TRIALS_MOST):
            call_bytes = len(taken.document) / max(1, taken.facts.calls)
            calls = calls_that_fit(call_bytes, self._call_s, size_bytes=SIZE_MOST_BYTES, time_s=limit_s)
            if calls == taken.facts.calls:
                break
            taken = self.of(calls)
            if len(taken.document) <= SIZE_MOST_BYTES:
                break
        return taken

    def of(self, calls: int) -> Taken:
        """A trace of so many calls."""
        lab, running = self._lab, self._running
        steps = calls * running.steps_per_call
        expected_s = (calls + running.drop) * self._call_s
        lab.tell(f"trace: {steps} {'step' if steps == 1 else 'steps'}", expected_s)
        request = messages.Trace(drop=running.drop, calls=calls, path=str(self._path))
        running.live.ask(request, lab.start_limit_s + SLOWEST * expected_s)
        document, events = _read(self._path)
        on_cuda = lab.session.machine.device.startswith("cuda")
        facts = facts_of(events, steps_per_call=running.steps_per_call, on_cuda=on_cuda)
        self._call_s = READING * (facts.step_ns or 0.0) * running.steps_per_call / 1e9
        return Taken(document, events, facts)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The file that torch.profiler wrote. It does not say where it could not write it whole."""
    try:
        document = path.read_bytes()
        # Names come from the user's code: control characters in them are not escaped.
        events: dict[str, Any] = json.loads(document.decode(errors="replace"), strict=False)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the trace could not be written whole to {gettempdir()}; free some space there, or name another folder "
            "with the variable TMPDIR"
        ) from error
    return document, events


def save(store: SessionStore, session: Session, summary: Summary, taken: Taken) -> TraceReport:
    """Write the trace, and a folder for TensorBoard, and say what there is. Raises StoreError."""
    files: dict[str, str | bytes] = {
        TRACE: taken.document,
        PLUGIN_TRACE: json.dumps(tensorboard.for_plugin(taken.events), separators=(",", ":")),
    }
    if tensorboard.available():
        for name, content in tensorboard.event_files(session, summary, taken.facts).items():
            files[f"{Path(PLUGIN_TRACE).parent}/{name}"] = content
    for name, text in files.items():
        store.write(name, text)
    plain = summary.baseline.step_ns
    return TraceReport(
        workload=summary.workload,
        folder=str(store.folder),
        files=list(files),
        size_bytes=len(taken.document),
        plain_step_ns=plain.p50 if plain is not None else None,
        facts=taken.facts,
        warnings=profiles.trace_warnings(taken.facts, len(taken.document)),
    )
