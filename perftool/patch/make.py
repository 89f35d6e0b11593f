"""The patch: which settings can be written into a script's own files, and what to do about the others.

A setting is written wholly or not at all. Pure; libcst is imported when a patch is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perftool.analysis.handover import Codes
from perftool.patch.lines import advice
from perftool.patch.texts import diff_of
from perftool.records import Patch, Settings, Site, Unwritten


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
    return Patch(
        root=root,
        diff=diff,
        files=files,
        written=written,
        already=already,
        unwritten=unwritten,
        notes=work.notes,
    )
