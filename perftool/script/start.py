"""From a launch's description to hooks in place: torch has just been imported, the script has not begun."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perftool.scenario import Scenario, plan_of
from perftool.script import hooks
from perftool.script.answers import Answers
from perftool.script.ending import at_end
from perftool.script.loop import Loop
from perftool.script.meeting import meet_apart
from perftool.script.realise import Realised
from perftool.script.seeds import shift_seeds
from perftool.script.steps import Rule
from perftool.script.turns import Turns
from perftool.script.under import Asked, Under, tell_missing
from perftool.target import Script, Vary
from perftool.vary import scenarios_of

if TYPE_CHECKING:
    from perftool.plan import Plan


def begin(spec: Mapping[str, Any]) -> None:
    """Put the settings over what the script is going to build, and take turns from its first step end on; once.

    spec: address of perftool's socket, or None for a script that is only to run under its settings; meeting (a folder
    that only the launch's processes share), launch (number), settings, in_files (names of those that the script's own
    files have, which are only to be proved), scenarios (name to file), switched (names of those whose values it will be
    switched between), script (its command, folder, and options that are settings), rule (of steps), loaders (which
    train), device, seed (to shift the script's own by), keeps_losses, watched; record (a folder), where a script that
    only runs is to be recorded.
    """
    if loop is not None:  # `perftool.step()` came before torch
        return
    settings = spec["settings"]
    scenarios = {name: _load(name, file) for name, file in spec["scenarios"].items()}
    chosen = {name: settings[name] for name in scenarios if name in settings and name not in spec.get("in_files", ())}
    device = spec["device"]
    if device == "auto" and not spec.get("address"):
        device = _device()
    plan = plan_of(None, chosen, scenarios, device=device, seed=spec["seed"])
    if spec.get("address"):
        _take_turns(spec, plan, scenarios)
        return
    asked = [
        Asked(
            name,
            value,
            plan_of(None, {name: value}, scenarios, device=device, seed=spec["seed"]),
            scenarios[name].present,
        )
        for name, value in chosen.items()
    ]
    loaders = spec.get("loaders", ())
    if spec.get("record"):
        _record(spec["record"], plan, asked, loaders)
    else:
        Under(plan, asked, loaders)


def _record(folder: str, plan: Plan, asked: Sequence[Asked], loaders: Sequence[Sequence[bool]]) -> None:
    from perftool.script.record import Recorder

    recorder = Recorder(folder, plan, loaders)
    follow(recorder.loop)
    recorder.begin()

    def ended() -> None:
        if recorder.end() and recorder.loop.steps:
            recorder.realised.laid.add("warmed_up")  # which the loop has seen to
            tell_missing(recorder.realised, asked)

    at_end(ended)


def _take_turns(spec: Mapping[str, Any], plan: Plan, scenarios: dict[str, Scenario]) -> None:
    scenarios = scenarios | scenarios_of(script_of(spec["script"]))
    own = Loop(Rule.from_json(spec["rule"]) if spec.get("rule") else None)
    own.keeps_losses = bool(spec.get("keeps_losses"))
    realised = Realised(plan, own, loaders=spec.get("loaders", ()), is_switched=bool(spec.get("switched")))
    follow(own)
    realised.prepare()
    if "torch" in sys.modules:
        shift_seeds(own, spec["seed"])
        hooks.install(own, realised)
        meet_apart(Path(spec["meeting"]))
    turns = Turns(spec["address"], own, Answers(spec, own, realised, scenarios))
    os.register_at_fork(after_in_child=turns.forked)
    at_end(turns.ended)


def _device() -> str:
    """Where a training runs unless it says otherwise."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


loop: Loop | None = None
"""The loop of this process, once there is one: `perftool.step()` looks for it here."""


def follow(found: Loop | None) -> None:
    """Have `perftool.step()` tell this loop; None: nobody."""
    global loop
    loop = found


def script_of(fields: Mapping[str, Any]) -> Script:
    """As the launch's file has it."""
    varied = tuple(Vary(**{**vary, "values": tuple(vary["values"])}) for vary in fields["vary"])
    return Script(command=tuple(fields["command"]), folder=fields["folder"], vary=varied)


def _load(name: str, file: str) -> Scenario:
    """A scenario from its file, under a name that no module of the user's has."""
    module_name = f"perftool_scenarios.{name}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    scenario: Scenario = module.scenario
    return scenario
