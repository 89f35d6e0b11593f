"""The summary as Markdown that fits a pull request comment: a short head, tables, the rest folded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from perftool.records import Check, Explained, SideBySide, Summary
from perftool.report import answers, beside, checks, method, patches, profiles, scripts, wording

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
    parts = [f"### {_escaped(answers.headline(summary))}", _escaped(answers.whole_loop(summary))]
    parts += [f"**Warning:** {_escaped(warning)}" for warning in answers.warnings(summary)]
    parts += [_escaped(" ".join(method.how_sure(summary)))] if not alone else []
    if advice is not None:
        parts.append(_table(("cost", ""), answers.costs(summary, advice)))
        if use := scripts.use(summary):
            parts.append(f"{scripts.USE_TITLE}:\n\n{_fenced(use, 'sh')}")
        if told := patches.lines(summary):
            taken = patches.command(summary)
            parts.append(f"{patches.TITLE}:" + (f"\n\n{_fenced(taken, 'sh')}" if taken else ""))
            parts.append(_table(("patch", ""), told))
        parts.append(_folded("Code to paste", _fenced(advice.code)))
        if advice.diff:
            parts.append(_folded("Lines to change", _fenced(advice.diff, "diff")))
        if len(advice.per_setting) > 1:
            parts.append(_folded("What each setting buys", _table(("setting", ""), answers.contributions(advice))))
    elif summary.provisional is not None and summary.provisional.code:
        parts.append(_folded(answers.PROVISIONAL_TITLE, _fenced(summary.provisional.code)))
    if advice is None and summary.parity is not None:
        parts.append(f"Numerics: {_escaped(answers.parity(summary.parity))}.")
    if alone:
        parts += _profile(summary)
    elif summary.check is not None:
        parts += _check(summary.check)
    elif wording.is_for_later(summary):
        parts.append(_table(("figure", ""), checks.for_later_lines(summary)))
    else:
        parts += _variants(summary, left_out, fold=advice is not None)
    told = scripts.lines(summary.script)
    parts.append(_table(("the script", ""), told) if told else "")
    parts.append(
        _folded(
            "How it was measured",
            f"{_escaped(method.how(summary))}\n\n{_table(('', ''), method.circumstances(summary))}",
        )
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def render_beside(found: SideBySide) -> str:
    """Two sessions of the same training."""
    rows, lost = beside.rows(found), beside.lost(found)
    shares = beside.share_rows(found) if wording.is_alone(found.first) else []
    parts = [
        f"### {_escaped(beside.headline(found))}",
        *(f"**Warning:** {_escaped(warning)}" for warning in beside.warnings(found)),
        _table(("session", "answer"), beside.advice(found)),
        _escaped(beside.TRAVELS),
        f"{_table(beside.HEADINGS, rows)}\n\n{_escaped(beside.CHANGE_RULE)}" if rows else "",
        _folded("Not measured", _table(("settings", "reason"), lost)) if lost else "",
        _table(beside.SHARE_HEADINGS, shares) if shares else "",
        _folded(beside.OWN_TITLE, _table(beside.OWN_HEADINGS, beside.own_rows(found))),
        _folded(beside.DIFFERING_TITLE, _table(beside.DIFFERING_HEADINGS, beside.differing_rows(found))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _profile(summary: Summary) -> list[str]:
    return [
        *(_explained(summary, summary.explained) if summary.explained else []),
        _table(("distance to the limit", ""), profiles.limit_lines(summary.distance)) if summary.distance else "",
        _table(("figure", ""), _figures(summary)),
    ]


def _figures(summary: Summary) -> wording.Pairs:
    own = profiles.figure_lines(summary.baseline, summary.sample_unit)
    return [*own, *profiles.memory_lines(summary.memory)]


def _check(check: Check) -> list[str]:
    headings = checks.FIGURE_HEADINGS
    notes = checks.notes(check)
    return [
        _table(headings, checks.figure_rows(check)),
        checks.RULE,
        _folded("Notes", _table(("metric", "note"), notes)) if notes else "",
    ]


def _explained(summary: Summary, found: Explained) -> list[str]:
    told = profiles.finding_rows(summary.findings)
    return [
        _table(("finding", "evidence"), told) if told else profiles.NOTHING_FOUND,
        _table(("phase", "of the step"), profiles.phase_lines(found)),
        _escaped(profiles.slow_text(found)),
        _table(profiles.CAUSE_HEADINGS, profiles.cause_rows(found)) if found.causes else "",
        _folded("Slowest steps", _table(profiles.WORST_HEADINGS, profiles.worst_rows(found))) if found.worst else "",
    ]


def _variants(summary: Summary, left_out: Sequence[str], *, fold: bool) -> list[str]:
    measured = wording.measured(summary)
    headings = wording.headings(wording.VARIANT_HEADINGS, summary)
    table = _table(headings, (wording.variant_cells(one, summary) for one in measured[:MOST_ROWS]))
    if len(measured) > MOST_ROWS:
        table += f"\n\n{wording.more(len(measured) - MOST_ROWS)}"
    if note := wording.p50_note(summary, measured):
        table += f"\n\n{note}"
    metrics = [
        (wording.settings_text(one.settings), *row)
        for one in measured
        for row in wording.comparison_rows(one, summary.sample_unit)
    ]
    if summary.smallest_batch is not None:
        table += f"\n\n{_escaped(answers.smallest_batch(summary.smallest_batch))}"
    folded = (
        (
            "Trade-offs: nothing beats these in everything",
            wording.headings(wording.TRADEOFF_HEADINGS, summary),
            wording.tradeoffs(summary),
        ),
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
