"""From a launch's description to hooks in place: torch has just been imported, the script has not begun."""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from perftool.scenario import Scenario, plan_of
from perftool.script import hooks
from perftool.script.answers import Answers
from perftool.script.loop import Loop
from perftool.script.realise import Realised
from perftool.script.seeds import shift_seeds
from perftool.script.steps import Rule
from perftool.script.turns import Turns
from perftool.target import Script, Vary
from perftool.vary import scenarios_of


def begin(spec: Mapping[str, Any]) -> None:
    """Put the settings over what the script is going to build, and take turns from its first step end on.

    spec: address of perftool's socket, or None for a script that is only to run under its settings; launch (number),
    settings, in_files (names of those that the script's own files have, which are only to be proved), scenarios (name
    to file), script (its command, folder, and options that are settings), rule (of steps), training_loaders (by order),
    device, seed (to shift the script's own by), keeps_losses, watched.
    """
    settings = spec["settings"]
    scenarios = {name: _load(name, file) for name, file in spec["scenarios"].items()}
    laid = {name: settings[name] for name in scenarios if name not in spec.get("in_files", ())}
    plan = plan_of(None, laid, scenarios, device=spec["device"], seed=spec["seed"])
    scenarios |= scenarios_of(script_of(spec["script"]))
    loop = Loop(Rule.from_json(spec["rule"]) if spec.get("rule") else None)
    loop.keeps_losses = bool(spec.get("keeps_losses"))
    realised = Realised(plan, loop, training_loaders=_numbers(spec.get("training_loaders")))
    realised.prepare()
    shift_seeds(loop, spec["seed"])
    hooks.install(loop, realised)
    sys.modules["perftool.script.start"].__dict__["loop"] = loop  # `perftool.step()` looks for it here
    if spec.get("address"):
        turns = Turns(spec["address"], loop, Answers(spec, loop, realised, scenarios))
        os.register_at_fork(after_in_child=turns.forked)
        atexit.register(turns.ended)


loop: Loop | None = None
"""The loop of this process, once there is one."""


def _numbers(given: Sequence[int] | None) -> list[int] | None:
    return None if given is None else list(given)


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
