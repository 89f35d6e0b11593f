"""The search for the best settings, new or gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import join

from msgspec.structs import replace

from perftool.errors import BadInput
from perftool.jobs.job import Bench, Job, Ready
from perftool.jobs.look import looked
from perftool.jobs.options import Options
from perftool.jobs.results import Results
from perftool.measure.lab import Lab
from perftool.records import Goal, Session
from perftool.scenario import check_names
from perftool.search import offer_of, switching_of, tune
from perftool.store import SessionStore, StoreError, reopen
from perftool.target import Script, Target, reference_of

SAME = ("cpu_model", "usable_cores", "device_name", "torch_version")  # of the machine, for measurements to be joined


@dataclass(frozen=True, kw_only=True)
class Tune(Job[None]):
    """kept: what the user expects of scenarios that are not varied, `NAME=VALUE`."""

    command = "tune"
    goal: Goal = field(default_factory=Goal)
    kept: tuple[str, ...] = ()

    def prepare(self, bench: Bench) -> Ready:
        return self._checked(self.fresh(bench, self.goal))

    def _checked(self, ready: Ready) -> Ready:
        goal = ready.session.goal
        check_names([*goal.allow, *goal.keep, *goal.only], ready.scenarios)
        for text in self.kept:
            name, _, value = text.partition("=")
            present = ready.session.defaults[name]
            if value != present:
                raise BadInput(f"--keep {text}: the baseline has {name}={present}; move it with -s {text}")
        if goal.max_device_bytes is not None and not ready.context.on_cuda:
            raise BadInput("--max-device-memory: there is no CUDA device here; use --max-host-memory")
        return ready

    def measure(self, lab: Lab, ready: Ready) -> None:
        session = lab.session
        offer = offer_of(ready.scenarios, ready.context, session.baseline, session.goal)
        tune(lab, offer, switching_of(ready.scenarios, ready.context, session.baseline, session.goal))

    def again(self, folder: Path) -> str | None:
        target = self.options.target
        words = ["perftool", "tune", "--resume", str(folder)]
        if isinstance(target, Script):
            for one in target.vary:
                words += ["--vary", one.name if one.kind == "flag" else f"{one.name}={'|'.join(one.values)}"]
            words += ["--", *target.command]
        return join(words)


@dataclass(frozen=True, kw_only=True)
class Resume(Tune):
    """A search that was interrupted goes on in its own folder.

    session, store: as they were left. more_s: of budget, beside what is left.
    """

    session: Session
    store: SessionStore
    more_s: float

    def open(self, out: Path) -> Results:
        return Results(self.store, keeps=True)

    def prepare(self, bench: Bench) -> Ready:
        options, session = self.options, self.session
        look = looked(
            options.target, options.device, options.seed, options.budget_s, bench.front, bench.sandboxes, bench.held
        )
        then, now = session.machine, look.described.machine
        for name in SAME:
            if getattr(then, name) != getattr(now, name):
                raise BadInput(
                    f"--resume {self.store.folder}: its {name} was {getattr(then, name)} and is {getattr(now, name)} "
                    "here, so its measurements do not belong together with new ones; start a new search"
                )
        going_on = replace(session, interrupted=False, budget_s=session.budget_s + self.more_s)
        ready = Ready(session=going_on, scenarios=bench.scenarios, context=look.context, footprint=look.footprint)
        return self._checked(ready)


def resumed(path: Path, target: Target | None, more_s: float, kept: Sequence[str], out: Path | None) -> Resume:
    """The search in a session's folder, to go on where it stopped.

    target: the session's own; None is that of a session of a workload. more_s: adds to its budget. Raises BadInput.
    """
    try:
        store, session = reopen(path)
    except StoreError as error:
        raise BadInput(str(error)) from error
    own = session.workload.reference
    if session.command != "tune":
        raise BadInput(f"--resume {path}: that is a session of `perftool {session.command}`, not of a search")
    if target is None and session.workload.driver == "script":
        raise BadInput(
            f"--resume {path}: that is a session of a command; give it again, and each --vary: "
            f"perftool tune --resume {path} -- {own}"
        )
    if target is not None and reference_of(target) != own:
        raise BadInput(f"--resume {path}: that is a session of {own}, not of {reference_of(target)}")
    options = Options(
        target=own if target is None else target,
        device=session.machine.device,
        budget_s=session.budget_s,
        out=out,
        seed=session.seed,
        scenario_files=tuple(map(Path, session.scenario_files)),
        arguments=tuple(session.arguments),
    )
    return Resume(options=options, kept=tuple(kept), session=session, store=store, more_s=more_s)
