"""What leaves a command: text on stdout and stderr, and the forms of a report."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from perftool.records import Session, SideBySide, Summary


class Format(StrEnum):
    """What `report` writes."""

    terminal = "terminal"
    markdown = "markdown"
    html = "html"
    json = "json"


def rendered(session: Session, summary: Summary, form: Format) -> str:
    from perftool.records import to_json
    from perftool.report import html, markdown, terminal

    match form:
        case Format.json:
            return to_json(summary, indent=2).decode()
        case Format.markdown:
            return markdown.render(summary)
        case Format.html:
            return html.render(session, summary)
        case Format.terminal:
            return terminal.render(summary, width=width(), colour=sys.stdout.isatty())


def rendered_beside(found: SideBySide, form: Format) -> str:
    from perftool.records import to_json
    from perftool.report import html, markdown, terminal

    match form:
        case Format.json:
            return to_json(found, indent=2).decode()
        case Format.markdown:
            return markdown.render_beside(found)
        case Format.html:
            return html.render_beside(found)
        case Format.terminal:
            return terminal.render_beside(found, width=width(), colour=sys.stdout.isatty())


def width() -> int:
    from shutil import get_terminal_size

    return min(120, get_terminal_size((80, 24)).columns)


def print_out(text: str) -> None:
    """To stdout. Whoever read it may have gone: that must not cost the files, nor change the exit code."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is still buffered would fail again at the end


def say(text: str) -> None:
    typer.echo(text, err=True)


def fail(text: str, code: int) -> NoReturn:
    say(f"perftool: {text}")
    raise typer.Exit(code)
