"""What is trained: a workload by its reference, or a script, which is a command of the user's. A leaf."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePath
from shlex import join
from typing import Literal, NamedTuple

VaryKind = Literal["option", "flag", "variable", "argument"]

LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
LAUNCHER_MODULES = ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch")
SHELLS = ("bash", "dash", "sh", "zsh")
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_HIDING = ("-I", "-E", "-S")  # options of Python
_ENDS_OPTIONS = re.compile(r"-\w*[cm]")  # and what comes next is code or a module
_TAKES_A_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # of Python's own options


@dataclass(frozen=True, kw_only=True)
class Vary:
    """An option of the script that is a setting.

    name: as the user writes it, such as `--num-workers`; also the setting's name.
    kind: an option with a value, a flag that is there or not ("on", "off"), an environment variable, or an argument
        `name=value`.
    values: those to try.
    """

    name: str
    kind: VaryKind
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Script:
    """A training as a command of the user's, run unchanged.

    command: its words, the program first. folder: where it runs, absolute. vary: its options that are settings.
    """

    command: tuple[str, ...]
    folder: str
    vary: tuple[Vary, ...] = ()


Target = str | Script
"""A workload's reference, or a script."""


class Entry(NamedTuple):
    """Which word of a command names the user's own program; its own arguments come after it.

    launched: by something that starts it as several processes, such as torchrun.
    """

    at: int
    kind: Literal["file", "module", "code", "program"]
    launched: bool = False


def name_of(target: Target) -> str:
    """What a results folder is called after: a reference as it is, `python train.py` as train."""
    if isinstance(target, str):
        return target
    at, kind, _ = entry_of(target.command)
    match kind:
        case "module":
            return target.command[at].replace(".", "-")
        case "code":
            return _base(target.command[0])
        case _:
            return PurePath(target.command[at]).stem


def reference_of(target: Target) -> str:
    """What a session says that it is of: a reference as it is, a command as one types it."""
    return target if isinstance(target, str) else join(target.command)


def entry_of(command: Sequence[str]) -> Entry:
    """Where the user's own program stands in a command: after the interpreter, the launcher, or what wraps them.

    A command that has none of these is the user's program itself.
    """
    runner = next((at for at, word in enumerate(command) if _runs_others(word)), None)
    if runner is None:
        return Entry(0, "program")
    if _base(command[runner]) in LAUNCHERS:
        return _launched(command, runner)
    words = iter(enumerate(command[runner + 1 :], runner + 1))
    for at, word in words:
        if word in _TAKES_A_VALUE:
            next(words, None)
        elif _ENDS_OPTIONS.fullmatch(word) and at + 1 < len(command):
            if word.endswith("c"):
                return Entry(at + 1, "code")
            if command[at + 1] in LAUNCHER_MODULES:
                return _launched(command, at + 1)
            return Entry(at + 1, "module")
        elif not word.startswith("-"):
            return _launched(command, at) if _base(word) in LAUNCHERS else Entry(at, "file")
    return Entry(runner, "program")


def hidden_by(command: Sequence[str]) -> str | None:
    """The option of its interpreter with which it does not come by perftool's hook; None where it does."""
    before = iter(command[: entry_of(command).at])
    if not any(_PYTHON.fullmatch(_base(word)) for word in before):
        return None
    own = takewhile(lambda word: not _ENDS_OPTIONS.fullmatch(word) and _base(word) not in LAUNCHERS, before)
    return next((word for word in own if word in _HIDING), None)


def _launched(command: Sequence[str], launcher: int) -> Entry:
    """What a launcher starts: its own options are many, and some have values, but a script ends in .py."""
    for at in range(launcher + 1, len(command)):
        if command[at - 1] in ("-m", "--module"):
            return Entry(at, "module", launched=True)
        if command[at].endswith(".py") and not command[at].startswith("-"):
            return Entry(at, "file", launched=True)
    return Entry(launcher, "program", launched=True)


def _runs_others(word: str) -> bool:
    base = _base(word)
    return base in LAUNCHERS or base in SHELLS or _PYTHON.fullmatch(base) is not None


def _base(word: str) -> str:
    return PurePath(word).name


def moved(script: Script, root: str, tree: str) -> Script:
    """The script as it stands in another tree of the same files: what it names in the root by an absolute path."""

    def there(word: str) -> str:
        path = PurePath(word)
        return str(tree / path.relative_to(root)) if path.is_relative_to(root) else word

    return replace(script, command=tuple(map(there, script.command)), folder=there(script.folder))


def own_arguments(command: Sequence[str]) -> Iterator[int]:
    """The places of the words that are the user's program's own options and their values; none after a bare `--`."""
    entry = entry_of(command)
    for at in range(entry.at + 1, len(command)):
        if command[at] == "--" and not entry.launched:
            return
        yield at
