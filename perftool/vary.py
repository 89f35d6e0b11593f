"""Options of a script as settings: `--vary '--num-workers=0|2|4'` as a Scenario, and the command that has its value."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from shlex import join
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, ScenarioError, refuse_unlisted
from perftool.target import Script, Vary, VaryKind, entry_of, own_arguments
from perftool.words import Engaged, Settings

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

OWN = "own"  # value of what the command does not say: whatever the script does then
FLAG = ("off", "on")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_NEGATIVE = re.compile(r"-\.?\d.*")
_DOC = """{what} of the script.

What it changes: {what}, which the script itself reads; perftool knows no more of it than its values.

When it helps: that is what the measurement tells.

When it hurts: it may change what the script learns. Losses over the same steps are compared before it is recommended,
and a value with which the script does not train the same is left out.

Source: --vary on the command line.
"""
_WHAT: dict[VaryKind, str] = {
    "option": "The option {name}",
    "flag": "The flag {name}",
    "variable": "The environment variable {name}",
    "argument": "The argument {name}=VALUE",
}


def parse(text: str) -> Vary:
    """`--num-workers=0|2|4`, `--amp` (a flag), `BATCH=32|64` (an environment variable) or `optim.lr=0.1|0.2`.

    Raises ScenarioError for anything else.
    """
    name, equals, listed = text.partition("=")
    values = tuple(dict.fromkeys(listed.split("|")))
    kind: VaryKind
    if name.startswith("-"):
        kind = "option" if equals else "flag"
    else:
        kind = "variable" if _VARIABLE.fullmatch(name) else "argument"
    if not name.strip("-") or any(map(str.isspace, name)) or (kind != "flag" and not (equals and all(values))):
        raise ScenarioError(
            f"--vary takes '--option=VALUE|VALUE', '--flag', 'VARIABLE=VALUE|VALUE' or 'name=VALUE|VALUE', not '{text}'"
        )
    return Vary(name=name, kind=kind, values=FLAG if kind == "flag" else values)


def scenarios_of(script: Script) -> dict[str, Scenario]:
    """Each of the script's varied options as a scenario. Raises ScenarioError for one that is varied twice."""
    found: dict[str, Scenario] = {}
    for vary in script.vary:
        if vary.name in found:
            raise ScenarioError(f"--vary {vary.name}: it is there twice; name all values in one, parted by |")
        found[vary.name] = _scenario(script, vary)
    return found


def _scenario(script: Script, vary: Vary) -> Scenario:
    own = present(script, vary)

    def refusal(value: str, _context: Context) -> str | None:
        return refuse_unlisted(value, FLAG) if vary.kind == "flag" else None

    def apply(plan: Plan, _value: str) -> Plan:  # the command has it already
        return plan

    def code(value: str, _context: Context) -> Code:
        told = vary.kind == "variable" or value == OWN
        return Code() if told else Code(command=join(_words(vary, value)))

    def environment(value: str) -> Mapping[str, str]:
        return {vary.name: value} if vary.kind == "variable" and value != OWN else {}

    return Scenario(
        __name__,
        _DOC.format(what=_WHAT[vary.kind].format(name=vary.name)),
        label=vary.name,
        default=lambda _: own,
        values=lambda _: list(dict.fromkeys([own, *vary.values])),
        refusal=refusal,
        apply=apply,
        proof=partial(_proof, vary),
        code=code,
        environment=environment,
        # Asked for by name, so tried without --allow; but what it does to the training is unknown, so losses decide.
        changes="numerics",
    )


def _proof(vary: Vary, _training: Live, value: str) -> Engaged:
    """Whether the process that trains was started with it: what stands between may have dropped it."""
    if vary.kind == "variable":
        found = os.environ.get(vary.name, OWN)
        return Engaged(ok=found == value, evidence=f"the environment has {vary.name}={found}")
    started = [sys.argv, sys.orig_argv]  # of a child of multiprocessing only the first is the script's own
    values = [_value(words[1:], vary, range(len(words) - 1)) for words in started]
    shown = join(started[values.index(value) if value in values else 0])
    return Engaged(ok=value in values, evidence=f"the training process was started as {shown}")


def present(script: Script, vary: Vary, environment: Mapping[str, str] = os.environ) -> str:
    """The value that the command has now, OWN where it says nothing."""
    if vary.kind == "variable":
        return environment.get(vary.name, OWN)
    return _value(script.command, vary, list(own_arguments(script.command)))


def command_with(script: Script, settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The command with these settings, and the environment variables that it needs for them.

    Settings that are none of the script's own options are left alone. What the command says already is replaced where
    it stands; what it does not say comes after the program's own arguments, before a bare `--`.
    """
    command, environment = script.command, {}
    within = list(own_arguments(command))
    placed: dict[int, Sequence[str]] = {}  # instead of the word there
    added: list[str] = []
    for vary in script.vary:
        value = settings.get(vary.name)
        if value is None or value == present(script, vary):
            continue
        if vary.kind == "variable":
            environment[vary.name] = value
            continue
        at = _places(command, vary, within)
        if not at:
            added += _words(vary, value)
        elif vary.kind == "flag":
            placed |= dict.fromkeys(at, ())
        elif _says_apart(command, vary, at[-1], within):
            name, text = _spelled(vary, value)
            placed |= {at[-1]: name, at[-1] + 1: text}
        else:
            head = command[at[-1]].partition("=")[0]
            placed[at[-1]] = [f"{head}={value}"] if "=" in command[at[-1]] else _words(vary, value)
    end = len(command) if entry_of(command).launched else 1 + max(within, default=entry_of(command).at)
    before, after = (
        [word for at in places for word in placed.get(at, [command[at]])]
        for places in (range(end), range(end, len(command)))
    )
    return [*before, *added, *after], environment


def _words(vary: Vary, value: str) -> list[str]:
    """What says this value on a command line."""
    match vary.kind:
        case "flag":
            return [vary.name] if value == "on" else []
        case "option" if not vary.name.startswith("--"):
            return [vary.name, value]  # -b=32 is understood by few
        case _:
            return [f"{vary.name}={value}"]


def _spelled(vary: Vary, value: str) -> tuple[list[str], list[str]]:
    """The same as a word for the name and one for the value, where the value would not be taken for an option."""
    words = [vary.name, value] if not value.startswith("-") else _words(vary, value)
    return words[:1], words[1:]


def _value(command: Sequence[str], vary: Vary, within: Sequence[int]) -> str:
    """The value that the words at these places say: the last one, which is what parsers go by."""
    at = _places(command, vary, within)
    if vary.kind == "flag":
        return "on" if at else "off"
    if not at:
        return OWN
    if _says_apart(command, vary, at[-1], within):
        return command[at[-1] + 1]
    return command[at[-1]].partition("=")[2] or OWN


def _places(command: Sequence[str], vary: Vary, within: Sequence[int]) -> list[int]:
    """The words, among those at these places, that name it. Hydra's arguments may begin with + or ++."""
    named = re.compile(rf"{'[+]{0,2}' if vary.kind == 'argument' else ''}{re.escape(vary.name)}")
    heads = {at: command[at].partition("=") for at in within}
    return [
        at
        for at, (head, equals, _) in heads.items()
        if named.fullmatch(head) and (bool(equals) or vary.kind != "argument")
    ]


def _says_apart(command: Sequence[str], vary: Vary, at: int, within: Sequence[int]) -> bool:
    """Whether the value is the next word."""
    if vary.kind != "option" or command[at] != vary.name or at + 1 not in within:
        return False
    word = command[at + 1]
    return not word.startswith("-") or _NEGATIVE.fullmatch(word) is not None
