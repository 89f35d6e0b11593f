"""What a benchmark hands back, and how its section of the results file reads. Text in, text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

REACHED = {True: "yes", False: "no", None: "-"}


@dataclass(frozen=True)
class Row:
    """One line of a table. `reached`: whether it meets its target; None where it has none."""

    cells: Sequence[str]
    reached: bool | None = None


@dataclass(frozen=True)
class Table:
    """The outcome of one benchmark."""

    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())


def markdown(table: Table) -> str:
    """The table, its notes below it."""
    lines = [_line([*table.columns, "reached"]), _line(["---"] * (len(table.columns) + 1))]
    lines += [_line([*row.cells, REACHED[row.reached]]) for row in table.rows]
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in table.notes)


def with_section(document: str, title: str, body: str) -> str:
    """The document with the section `## title` replaced, or added at its end."""
    section = f"## {title}\n\n{body.strip()}\n"
    # Split before each heading, so that what stands above the first one is kept too.
    parts = [part for part in re.split(r"(?m)^(?=## )", document) if part.strip()]
    same = [index for index, part in enumerate(parts) if part.splitlines()[0] == f"## {title}"]
    if same:
        parts[same[0]] = section
    else:
        parts.append(section)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def share(count: int, total: int) -> str:
    """`3 of 40 (7.5 %)`."""
    return f"{count} of {total} ({100 * count / total:.1f} %)" if total else "none of 0"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
