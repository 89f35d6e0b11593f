"""The patch: which settings can be written into a script's own files, and what to do about the others.

A setting is written wholly or not at all. Pure but for `write` and `save`; libcst is imported when a patch is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from perftool.analysis.handover import Codes
from perftool.patch.lines import advice
from perftool.patch.texts import diff_of, encoded, encoded_diff
from perftool.records import Record, Settings, Site


class Unwritten(Record, frozen=True, kw_only=True):
    """A setting that the patch has not: why, and what to write or to type instead."""

    setting: str  # name=value
    reason: str
    advice: str


class Patch(Record, frozen=True, kw_only=True):
    """What settings change in a user's own files.

    diff: unified, with paths from the root on; `patch -p1` and `git apply` take it. "" where nothing changes.
    files: path from the root on, with slashes, to the new text of each file that changes.
    written: names of the settings that the diff contains.
    already: those that the files had already.
    notes: what else to know of how they are written, as sentences.
    """

    diff: str
    files: dict[str, str]
    written: list[str]
    already: list[str]
    unwritten: list[Unwritten]
    notes: list[str]


def make(settings: Settings, codes: Codes, sites: Sequence[Site], read: Callable[[str], str], root: str) -> Patch:
    """The patch for these settings.

    codes: the lines of each scenario by value and place; place "environment" has variables to start with, "command"
        words of the command line.
    sites: the places that the running script showed.
    read: the text of a file by its absolute path, with its line ends (`texts.decoded`). May raise OSError.
    root: absolute; no file that is not below it is read or changed.
    """
    from perftool.patch.places import lay, texts, wish_of
    from perftool.patch.source import Refused
    from perftool.patch.work import Script, Wish, Work

    script = Script(sites, read, root)
    written: list[str] = []
    already: list[str] = []
    unwritten: list[Unwritten] = []
    chosen: list[Wish] = []
    for name, value in sorted(settings.items()):
        alone = Work(script)
        try:
            wish = wish_of(codes, name, value)
            lay([wish], alone)
            lay([*chosen, wish], Work(script))
        except Refused as reason:
            instead = advice(codes, name, value, sites)
            unwritten.append(Unwritten(setting=f"{name}={value}", reason=str(reason), advice=instead))
        else:
            (already if alone.is_empty else written).append(name)
            chosen.append(wish)
    work = Work(script)
    lay(chosen, work)
    files = texts(work)
    diff = "".join(diff_of(path, script.source(path).text, text) for path, text in files.items())
    return Patch(diff=diff, files=files, written=written, already=already, unwritten=unwritten, notes=work.notes)


def write(patch: Patch, folder: Path) -> None:
    """Write the files that the patch changes into a folder that mirrors the root, each in its own encoding."""
    for path, text in patch.files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(text))


def save(patch: Patch, file: Path) -> None:
    """Write the diff so that it applies: each part in the encoding of its file."""
    file.write_bytes(encoded_diff(patch.diff, patch.files))
