"""A recorded run as a session: from what its processes have left, whatever ended them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.errors import NotMeasured, NotWritten
from perftool.jobs.failures import told
from perftool.jobs.look import offered
from perftool.jobs.results import Results
from perftool.measure.messages import Described
from perftool.measure.scripted import workload_of
from perftool.measure.survey import new_session
from perftool.plan import Plan
from perftool.probes.machine import describe_machine
from perftool.records import (
    MEASURE,
    Block,
    Launch,
    Machine,
    MemorySample,
    ScriptFacts,
    Session,
    Settings,
    Summary,
    WatchedBlock,
)
from perftool.scenario import ScenarioError, Scenarios
from perftool.script import start
from perftool.script.record import Recorder
from perftool.script.trail import SUFFIX, Left, read
from perftool.store import SessionStore, open_results
from perftool.target import Script, name_of

NOTHING = (
    "no step was recorded: nothing called backward or an optimizer's step, or it ended within seconds; say where a "
    "step ends by `import perftool` and `perftool.step()`"
)


@contextmanager
def record(out: str | Path = "results") -> Iterator[Path]:
    """Record the training steps that this process makes within, as `perftool run --record` does.

    out: a folder, in which a folder with the session and its report is made; that one's path is what `as` gets.
    Steps are found as in any script; where nothing shows them, `perftool.step()` says where one ends.

    In a process that perftool measures or records already it does nothing. Raises NotMeasured where there was no step,
    NotWritten where the results cannot be written; what the training raises itself goes on after they are written.
    """
    if start.loop is not None:
        yield Path(out)
        return
    import torch  # noqa: F401 - hooks come over what is there already

    script = Script(command=tuple(sys.orig_argv), folder=os.getcwd())
    with told():
        store = open_results(Path(out), name_of(script), "run")
        recorder = Recorder(str(store.folder), Plan(workload=None))
        start.follow(recorder.loop)
        try:
            recorder.begin()
            yield store.folder
        finally:
            recorder.end()
            start.follow(None)
            finish(store, script, {}, offered(script, ()))


def finish(
    store: SessionStore,
    script: Script,
    settings: Settings,
    scenarios: Scenarios,
    *,
    arguments: Sequence[str] = (),
    scenario_files: Sequence[Path] = (),
    started_ns: int | None = None,
    warnings: Sequence[str] = (),
) -> Summary:
    """Turn what the processes have left in the folder into a session with its report, and remove it.

    started_ns: when the command was, CLOCK_MONOTONIC. Raises NotMeasured where there is no step, NotWritten.
    """
    found = _left(store.folder)
    if not found:
        for path in _paths(store.folder):
            path.unlink()
        store.discard()
        raise NotMeasured(NOTHING)
    session = _session(found, script, settings, scenarios, arguments, scenario_files)
    session = replace(session, warnings=[*session.warnings, *warnings, *_warnings(found, _paths(store.folder))])
    for number, one in enumerate(found):
        session = _with_rank(session, number, one, started_ns)
    results, summary = Results(store), conclude(session)
    results.write(session, summary)
    if results.unwritten is not None:
        raise NotWritten(results.unwritten)
    for path in _paths(store.folder):
        with suppress(OSError):
            path.unlink()
    results.draw(session, summary)
    return summary


class Rank(NamedTuple):
    """What one rank has left."""

    facts: dict[str, Any]
    standing: dict[str, Any]  # as told last
    left: Left

    @property
    def steps(self) -> int:
        """That were recorded one by one."""
        return sum(len(block.step_ns) for block in self.left.blocks)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _left(folder: Path) -> list[Rank]:
    """Of each rank, by its number, the process that made most steps."""
    ranks: dict[int, Rank] = {}
    for path in _paths(folder):
        left = read(path)
        facts = next((line for line in left.lines if line["type"] == "facts"), None)
        if facts is None or not any(block.step_ns for block in left.blocks):
            continue
        standings = [line for line in left.lines if line["type"] == "standing"]
        one = Rank(facts, standings[-1] if standings else {}, left)
        if facts["rank"] not in ranks or one.steps > ranks[facts["rank"]].steps:
            ranks[facts["rank"]] = one
    return [ranks[number] for number in sorted(ranks)]


def _session(
    found: Sequence[Rank],
    script: Script,
    settings: Settings,
    scenarios: Scenarios,
    arguments: Sequence[str],
    scenario_files: Sequence[Path],
) -> Session:
    """Without what was recorded."""
    facts = replace(
        msgspec.convert(found[0].facts, ScriptFacts),
        command=list(script.command),
        folder=script.folder,
        ranks=len(found),
    )
    described = Described(
        machine=_machine(facts),
        workload=workload_of(script, facts),
        peak_host_bytes=found[0].standing.get("peak_host_bytes"),
        device_used_bytes=None,
        step_ns=facts.step_ns,
    )

    def with_settings(those: Settings) -> Session:
        return new_session(
            described,
            scenarios,
            command="run",
            arguments=arguments,
            settings=those,
            seed=0,
            budget_s=0.0,
            scenario_files=scenario_files,
        )

    try:
        return with_settings(settings)
    except ScenarioError as error:  # it has run all the same
        return replace(with_settings({}), warnings=[f"a setting could not take effect: {error}"])


def _machine(facts: ScriptFacts) -> Machine:
    """The one that this process is on, with the interpreter that trained, and its device."""
    try:
        machine = describe_machine(facts.device)
    except (AssertionError, RuntimeError):  # perftool's own torch knows no such device
        machine = replace(describe_machine("cpu"), device=facts.device)
    return replace(
        machine,
        python_version=facts.python_version,
        torch_version=facts.torch_version,
        torch_threads=facts.torch_threads,
    )


def _warnings(found: Sequence[Rank], paths: Sequence[Path]) -> list[str]:
    warnings = []
    if len(paths) > len(found):
        warnings.append("the command ran several trainings; this is the one with most steps")
    every = max(one.standing.get("every", 1) for one in found)
    if every > 1:
        steps = max(one.standing.get("steps", 0) for one in found)
        warnings.append(f"of {steps:,} steps and more one in {every} was kept, in blocks of consecutive ones")
    expected = found[0].facts["ranks"]
    if len(found) < expected:
        warnings.append(f"only {len(found)} of {expected} ranks left their steps")
    if found[0].facts["device"] != "cpu":
        warnings.append(
            "step times are by the clock of the host, which may be ahead of the device: their mean is right, and "
            "single ones are blurred"
        )
    return warnings


def _with_rank(session: Session, number: int, one: Rank, started_ns: int | None) -> Session:
    """The session with what one rank has left, as a launch of that number. A step of all ranks learns from the samples
    of all."""
    standing, blocks = one.standing, one.left.blocks
    ranks, samples, every = one.facts["ranks"], standing.get("samples_per_step", 1), standing.get("every", 1)
    share = min(1.0, one.steps / max(1, standing.get("steps", one.steps)))  # of what else the loop did, likewise
    aside_ns = {name: round(share * ns) for name, (_, ns) in standing.get("asides", {}).items()}
    launch = Launch(
        launch=number,
        variant=0,
        generation=0,
        stage=MEASURE,
        status="measured",
        start_up_ns=None if started_ns is None else max(0, one.facts["first_step_ns"] - started_ns),
        peak_host_bytes=standing.get("peak_host_bytes"),
        peak_device_allocated_bytes=standing.get("peak_device_allocated_bytes"),
        peak_device_reserved_bytes=standing.get("peak_device_reserved_bytes"),
    )
    recorded = [
        Block(
            launch=number,
            round=at,
            position=0,
            started_ns=block.began_ns,
            wall_ns=sum(block.step_ns),
            steps=len(block.step_ns),
            samples=round(len(block.step_ns) * samples * ranks),
            step_ns=block.step_ns,
            aside_ns=aside_ns if at == 0 else {},
        )
        for at, block in enumerate(blocks)
        if block.step_ns
    ]
    bursts = [line for line in one.left.lines if line["type"] == "watched"]
    watched = [
        msgspec.convert(
            {**line, "launch": number, "round": _round(line["block"], every, len(blocks) + at)}, WatchedBlock
        )
        for at, line in enumerate(bursts)
    ]
    memory = [
        MemorySample(
            launch=number,
            steps=line["steps"],
            host_bytes=line["host_bytes"],
            device_allocated_bytes=line.get("device_allocated_bytes"),
        )
        for line in one.left.lines
        if line["type"] == "standing"
    ]
    return replace(
        session,
        launches=[*session.launches, launch],
        blocks=[*session.blocks, *recorded],
        watched_blocks=[*session.watched_blocks, *watched],
        memory_samples=[*session.memory_samples, *memory],
    )


def _round(block: int, every: int, otherwise: int) -> int:
    """Of the plain block beside a burst, where it was kept."""
    return otherwise if block % every else block // every
