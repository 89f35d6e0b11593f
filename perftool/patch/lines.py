"""The lines of a setting that a script with its own DataLoader can use, and advice where they are not written."""

from __future__ import annotations

from collections.abc import Sequence

from perftool.analysis.handover import Codes, to_paste
from perftool.patch.frameworks import words
from perftool.records import Site

_INSTEAD = {"batches": "sampling", "batch_calls": "loader_arguments"}  # of the latter, where there is no DataLoader


def lines_of(codes: Codes, name: str, value: str) -> dict[str, str] | None:
    """Place to lines; None for a value that is not known."""
    known = codes.get(name, {}).get(value)
    return None if known is None else {key: text for key, text in known.items() if _INSTEAD.get(key) not in known}


def advice(codes: Codes, name: str, value: str, sites: Sequence[Site]) -> str:
    """What to write, or to type, for a setting that the patch has not."""
    lines = lines_of(codes, name, value)
    framework = next((site.framework for site in sites if site.framework), None)
    own = words(framework, name, value) if framework else None
    if own is not None:
        return own
    if lines is None:
        return f"perftool run -s {name}={value} -- and the command trains with it"
    if "command" in lines:
        return f"add {lines['command']} to the command"
    if "environment" in lines:
        return f"put {lines['environment']} in front of the command"
    return to_paste({name: {value: lines}}, {name: value}, {})
