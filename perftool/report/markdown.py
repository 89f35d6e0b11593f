"""The summary as Markdown that fits a pull request comment: a short head, tables, details folded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from perftool import units
from perftool.records import Summary
from perftool.report import wording


def render(summary: Summary) -> str:
    """The whole report. Whatever users named is escaped and shows as text."""
    parts = [f"### {_escaped(wording.headline(summary))}"]
    advice = summary.recommendation
    if advice is not None:
        parts.append(_escaped(wording.sureness(advice)) + ".")
        parts.append(_table(("cost", ""), wording.costs(advice)))
        parts.append(f"```python\n{advice.code}\n```")
        if len(advice.per_setting) > 1:
            rows = [(f"{one.name}={one.value}", wording.contribution(one)) for one in advice.per_setting]
            parts.append(_table(("setting", "what it bought"), rows))
    if summary.command == "profile":
        parts.append(_table(("figure", ""), wording.profile_lines(summary.baseline)))
    else:
        variants = [
            (wording.settings_text(one.settings), *wording.variant_cells(one))
            for one in (summary.baseline, *summary.variants)
        ]
        table = _table(("settings", "samples/s against baseline", "verdict", "p50", "peak memory", "note"), variants)
        parts.append(_folded(f"Everything measured ({len(variants)} variants)", table) if advice else table)
    if summary.rejected:
        rows = [(wording.settings_text(one.settings), one.reason) for one in summary.rejected]
        parts.append(_folded("Not advised, and why", _table(("settings", "reason"), rows)))
    if summary.parity is not None and advice is None:
        parts.append(f"Numerics: {_escaped(wording.parity(summary.parity))}.")
    parts += [f"**Warning:** {_escaped(warning)}" for warning in summary.warnings]
    facts = [
        ("machine", wording.machine_text(summary.machine)),
        (
            "measured",
            f"{summary.created_at}, {units.duration(summary.measured_s * 1e9)} of blocks, seed {summary.seed}",
        ),
        ("again", wording.again(summary)),
        ("commit", f"{summary.machine.git_commit or 'none'}{' with changes' if summary.machine.git_dirty else ''}"),
    ]
    parts.append(_folded("How it was measured", f"{HOW}\n\n{_table(('', ''), facts)}"))
    return "\n\n".join(parts) + "\n"


HOW = (
    "Each variant ran in several fresh processes that took turns with the baseline's, one running at a time, in a "
    "drawn order. Ratios are from blocks of the same round; intervals treat launches as a random effect and hold for all "
    "variants together."
)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(headings), _row(["---"] * len(headings))]
    lines += [_row([_escaped(cell) for cell in row]) for row in rows]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _escaped(text: str) -> str:
    """Text that Markdown and HTML leave alone."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(visible, quote=False))
