"""The summary as Markdown that fits a pull request comment: a short head, tables, the rest folded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from perftool.records import Check, Explained, SideBySide, Summary
from perftool.report import wording

FITS = 65_000  # characters; GitHub takes 65,536 in a comment
MOST_ROWS = 100  # of the table of variants
EXPENDABLE = ("Every metric", "Notes", "Trade-offs: nothing beats these in everything", "Not measured", "Not advised")
"""Tables that are left out one after another where the whole is too long for a comment."""


def render(summary: Summary) -> str:
    """The whole report, or as much as fits. Whatever users named is escaped and shows as text."""
    page = _rendered(summary, [])
    for count in range(1, len(EXPENDABLE) + 1):
        if len(page) <= FITS:
            break
        page = _rendered(summary, EXPENDABLE[:count])
    return page


def _rendered(summary: Summary, left_out: Sequence[str]) -> str:
    advice = summary.recommendation
    alone = wording.is_alone(summary)
    parts = [f"### {_escaped(wording.headline(summary))}"]
    parts += [f"**Warning:** {_escaped(warning)}" for warning in wording.warnings(summary)]
    parts += [_escaped(" ".join(wording.how_sure(summary)))] if not alone else []
    if advice is not None:
        parts.append(_table(("cost", ""), wording.costs(summary, advice)))
        parts.append(_folded("Code to paste", _fenced(advice.code)))
        if advice.diff:
            parts.append(_folded("Lines to change", _fenced(advice.diff, "diff")))
        if len(advice.per_setting) > 1:
            parts.append(_folded("What each setting buys", _table(("setting", ""), wording.contributions(advice))))
    elif summary.parity is not None:
        parts.append(f"Numerics: {_escaped(wording.parity(summary.parity))}.")
    if alone:
        parts += _profile(summary)
    elif summary.check is not None:
        parts += _check(summary.check)
    elif wording.is_for_later(summary):
        parts.append(_table(("figure", ""), wording.for_later_lines(summary)))
    else:
        parts += _variants(summary, left_out, fold=advice is not None)
    parts.append(
        _folded(
            "How it was measured",
            f"{_escaped(wording.how(summary))}\n\n{_table(('', ''), wording.circumstances(summary))}",
        )
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def render_beside(found: SideBySide) -> str:
    """Two sessions of the same training."""
    rows, lost = wording.beside_rows(found), wording.beside_lost(found)
    shares = wording.share_rows(found) if wording.is_alone(found.first) else []
    parts = [
        f"### {_escaped(wording.beside_headline(found))}",
        *(f"**Warning:** {_escaped(warning)}" for warning in wording.beside_warnings(found)),
        _table(("session", "answer"), wording.beside_answers(found)),
        _escaped(wording.TRAVELS),
        f"{_table(wording.BESIDE_HEADINGS, rows)}\n\n{_escaped(wording.CHANGE_RULE)}" if rows else "",
        _folded("Not measured", _table(("settings", "reason"), lost)) if lost else "",
        _table(wording.SHARE_HEADINGS, shares) if shares else "",
        _folded(wording.OWN_TITLE, _table(wording.OWN_HEADINGS, wording.own_rows(found))),
        _folded(wording.DIFFERING_TITLE, _table(wording.DIFFERING_HEADINGS, wording.differing_rows(found))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _profile(summary: Summary) -> list[str]:
    return [
        *(_explained(summary, summary.explained) if summary.explained else []),
        _table(("distance to the limit", ""), wording.limit_lines(summary.distance)) if summary.distance else "",
        _table(("figure", ""), [*wording.profile_lines(summary.baseline), *wording.memory_lines(summary.memory)]),
    ]


def _check(check: Check) -> list[str]:
    headings = wording.CHECK_FIGURE_HEADINGS
    notes = wording.check_notes(check)
    return [
        _table(headings, wording.check_figure_rows(check)),
        wording.CHECK_RULE,
        _folded("Notes", _table(("metric", "note"), notes)) if notes else "",
    ]


def _explained(summary: Summary, found: Explained) -> list[str]:
    told = wording.finding_rows(summary.findings)
    return [
        _table(("finding", "evidence"), told) if told else wording.NOTHING_FOUND,
        _table(("phase", "of the step"), wording.phase_lines(found)),
        _escaped(wording.slow_text(found)),
        _table(wording.CAUSE_HEADINGS, wording.cause_rows(found)) if found.causes else "",
        _folded("Slowest steps", _table(wording.WORST_HEADINGS, wording.worst_rows(found))) if found.worst else "",
    ]


def _variants(summary: Summary, left_out: Sequence[str], *, fold: bool) -> list[str]:
    measured = wording.measured(summary)
    table = _table(wording.VARIANT_HEADINGS, (wording.variant_cells(one, summary) for one in measured[:MOST_ROWS]))
    if len(measured) > MOST_ROWS:
        table += f"\n\n{wording.more(len(measured) - MOST_ROWS)}"
    metrics = [(wording.settings_text(one.settings), *row) for one in measured for row in wording.comparison_rows(one)]
    if summary.smallest_batch is not None:
        table += f"\n\n{_escaped(wording.smallest_batch(summary.smallest_batch))}"
    folded = (
        ("Trade-offs: nothing beats these in everything", wording.TRADEOFF_HEADINGS, wording.tradeoffs(summary)),
        ("Notes", ("settings", "note"), wording.notes(summary)),
        ("Not advised", ("settings", "reason"), wording.rejected(summary.rejected)),
        ("Not measured", ("settings", "reason"), wording.lost(summary)),
        ("Every metric", ("settings", "metric", "ratio", "verdict", "from"), metrics),
    )
    return [
        _folded(f"Measured ({len(measured)})", table) if fold else table,
        *(_folded(title, _table(headings, rows)) for title, headings, rows in folded if rows and title not in left_out),
        *([_escaped(wording.left_out(left_out))] if left_out else []),
    ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(headings), _row(["---"] * len(headings))]
    lines += [_row([_escaped(cell) for cell in row]) for row in rows]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _fenced(code: str, language: str = "python") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    lines = "\n".join(wording.printable(line) for line in code.splitlines())
    return f"{fence}{language}\n{lines}\n{fence}"


def _escaped(text: str) -> str:
    """One line that Markdown and HTML leave alone: no tag, link, image, mention, formula or table border."""
    plain = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(wording.visible(text), quote=False))
    # Entities, since a backslash does not keep GitHub from making links and mentions of these.
    return plain.replace("://", "&#58;//").replace("@", "&#64;")
