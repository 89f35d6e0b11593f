"""The sentences of a patch: how to take it, how fast the patched script is, and what it does not contain."""

from __future__ import annotations

from shlex import quote

from perftool.records import Comparison, PatchAdvice, Summary
from perftool.report.wording import TIMES_AND_RATES, Pairs, comparison_text, goal_name

TITLE = "Take it as a patch of your files"
BESIDE = {"same": "as fast as", "better": "faster than", "worse": "slower than", "undecided": "not told apart from"}
BESIDE_OTHERWISE = {**BESIDE, "same": "as good as", "better": "better than", "worse": "worse than"}


def lines(summary: Summary) -> Pairs:
    """What the patch changes, what was measured of it, and what it does not contain; nothing where there is none."""
    advice = summary.recommendation
    patch = advice.patch if advice is not None else None
    if advice is None or patch is None:
        return []
    told = [("changes", f"{', '.join(patch.files)}: {', '.join(patch.written)}")] if patch.files else []
    told.append(("measured", _measured(patch, goal_name(advice.metric, summary.sample_unit), advice.metric)))
    if patch.already:
        told.append(("already there", ", ".join(patch.already)))
    for one in patch.unwritten:
        instead = "paste its lines" if "\n" in one.advice else one.advice
        told.append((f"without {one.setting}", f"{one.reason}; instead: {instead}"))
    return [*told, *(("note", note) for note in patch.notes)]


def command(summary: Summary) -> str:
    """What applies the patch; "" where there is none to apply, or it is not kept."""
    patch = summary.recommendation.patch if summary.recommendation is not None else None
    if patch is None or patch.file is None or summary.folder is None:
        return ""
    return f"git -C {quote(patch.root)} apply < {quote(f'{summary.folder}/{patch.file}')}"


def _measured(patch: PatchAdvice, goal: str, metric: str) -> str:
    match patch.confirmed:
        case None if patch.already and not patch.unwritten:
            return "your files have all of it already"
        case None:
            return "nothing of it can be written into your files"
        case "broken":
            return f"there is no patch to take, since the patched script was run and failed: {patch.reason}"
        case "not_measured":
            return f"the patched script was not measured: {patch.reason}"
    assert patch.versus_baseline is not None
    rest = f", with {', '.join(one.setting for one in patch.unwritten)} set beside it" if patch.unwritten else ""
    gained = f"patched script {comparison_text(patch.versus_baseline)} the {goal}{rest}{_beside(patch, metric)}"
    return gained if patch.confirmed == "confirmed" else f"not confirmed: {gained}"


def _beside(patch: PatchAdvice, metric: str) -> str:
    """How it compares with the script that the settings were laid over."""
    found: Comparison | None = patch.versus_interposed
    if found is None:
        return ""
    words = (BESIDE if metric in TIMES_AND_RATES else BESIDE_OTHERWISE)[found.verdict]
    return f", {words} the interposed one, {comparison_text(found)}"
