"""The summary as text for a terminal, correct at 80 columns and without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from perftool import units
from perftool.records import Fitness, FitnessRating, Machine, Summary, VariantSummary
from perftool.report import wording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from perftool.scenario import Context, Scenario

STYLES = {"faster": "green", "slower": "red", "failed": "red", "skipped": "yellow"}


class _Page:
    """Lines and tables, laid out by rich into a string. Whatever users named is text, never markup."""

    def __init__(self, width: int, colour: bool) -> None:
        from rich.console import Console

        self._buffer = io.StringIO()
        self.console: Console = Console(
            file=self._buffer,
            width=width,
            force_terminal=colour,
            no_color=not colour,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def line(self, text: str = "", style: str | None = None) -> None:
        self.console.print(_visible(text), style=style, soft_wrap=False)

    def code(self, text: str) -> None:
        """Lines to copy: never wrapped, so that they can be pasted."""
        for one in text.splitlines():
            self._buffer.write(f"    {_visible(one)}".rstrip() + "\n")

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(_text(name), _text(text))
        self.console.print(table)

    def table(self, headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for row in rows:
            style = next((STYLES[cell] for cell in row if cell in STYLES), None)
            table.add_row(*(_text(cell) for cell in row), style=style)
        self.console.print(table)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._buffer.getvalue().splitlines())


def render(summary: Summary, *, width: int = 80, colour: bool = False) -> str:
    """The whole story in one screen: the answer, its costs, the code, everything tried, and how sure it is."""
    page = _Page(width, colour)
    page.line(wording.headline(summary), style="bold")
    advice = summary.recommendation
    if advice is not None:
        page.line(wording.sureness(advice))
        page.line()
        page.pairs(wording.costs(advice))
        page.line()
        page.line("Paste into your training:", style="bold")
        page.code(advice.code)
        if len(advice.per_setting) > 1:
            page.line()
            page.pairs((f"{one.name}={one.value}", wording.contribution(one)) for one in advice.per_setting)
    if summary.command == "profile":
        page.pairs(wording.profile_lines(summary.baseline))
    else:
        page.line()
        _variants(page, [summary.baseline, *summary.variants])
    if summary.rejected:
        page.line()
        page.line("Not advised:", style="bold")
        page.pairs((wording.settings_text(one.settings), one.reason) for one in summary.rejected)
    for warning in summary.warnings:
        page.line(f"Warning: {warning}", style="yellow")
    page.line()
    page.line(f"On {wording.machine_text(summary.machine)}; {units.duration(summary.measured_s * 1e9)} of blocks.")
    return page.text()


def _variants(page: _Page, variants: Iterable[VariantSummary]) -> None:
    """Those that were measured as a table, fastest first, with the reasons of the others below."""

    def order(variant: VariantSummary) -> float:
        throughput = variant.versus_baseline.get("throughput")
        return -(throughput.ratio if throughput else 1.0)

    measured = sorted((one for one in variants if one.status == "measured"), key=order)
    page.table(
        ("settings", "samples/s", "verdict", "p50", "memory", ""),
        ((wording.settings_text(one.settings), *wording.variant_cells(one)) for one in measured),
    )
    lost = [one for one in variants if one.status != "measured"]
    if lost:
        page.line()
        page.pairs((wording.settings_text(one.settings), f"{one.status}: {one.reason}") for one in lost)


def render_machine(machine: Machine, fitness: Fitness, rating: FitnessRating, *, width: int = 80) -> str:
    """What a machine is, and how fit it is for measuring now."""
    page = _Page(width, colour=False)
    page.pairs(
        [
            ("CPU", f"{machine.cpu_model}, {machine.usable_cores} usable cores"),
            ("matrix units", ", ".join(machine.matrix_units) or "none"),
            ("memory", f"{units.size(machine.memory_bytes)}, {units.size(machine.memory_available_bytes)} available"),
            ("device", machine.device_name or machine.device),
            ("system", f"{machine.system}, {machine.libc or 'libc unknown'}"),
            (
                "torch",
                f"{machine.torch_version}, {machine.torch_threads} threads, CUDA {machine.cuda_version or 'none'}",
            ),
            ("compiler", machine.compiler or "none"),
            (
                "environment",
                ", ".join(f"{key}={text}" for key, text in machine.environment.items()) or "nothing telling",
            ),
            ("load", f"{fitness.load_average_1min} over {fitness.cores} cores"),
            ("steal", units.share(fitness.steal_share)),
            ("waiting for a core", units.share(fitness.pressure_share)),
        ]
    )
    page.line()
    page.line(f"For measuring it is {rating.rating} now.", style="bold")
    for reason in rating.reasons:
        page.line(f"- {reason}")
    return page.text()


def render_scenarios(scenarios: Mapping[str, Scenario], context: Context, *, width: int = 80) -> str:
    """What can be varied here, and what cannot, with the reason."""
    page = _Page(width, colour=False)
    for name, scenario in scenarios.items():
        page.line(name, style="bold")
        page.line(f"  {scenario.summary}")
        page.line(f"  values: {_values(scenario, context)}")
        for reason in _reasons(scenario, context):
            page.line(f"  {reason}")
    return page.text()


def render_scenario(scenario: Scenario, context: Context, *, width: int = 80) -> str:
    """One scenario's documentation, its values here, and the code of each."""
    page = _Page(width, colour=False)
    page.line(scenario.name, style="bold")
    for paragraph in (scenario.doc or "").strip().splitlines():
        page.line(paragraph)
    page.line()
    page.line(f"values here: {_values(scenario, context)}")
    for reason in _reasons(scenario, context):
        page.line(reason)
    for value in scenario.available(context):
        for place, lines in scenario.code(value, context).filled().items():
            page.line()
            page.line(f"{scenario.name}={value}, {place}:")
            page.code(lines)
    return page.text()


def _values(scenario: Scenario, context: Context) -> str:
    default = scenario.default(context)
    return ", ".join(f"{value} (default)" if value == default else value for value in scenario.available(context))


def _reasons(scenario: Scenario, context: Context) -> list[str]:
    refused = {value: scenario.refusal(value, context) for value in scenario.values(context)}
    return [f"not here: {value}, since {reason}" for value, reason in refused.items() if reason]


def _text(text: str) -> Text:
    from rich.text import Text

    return Text(_visible(text))


def _visible(text: str) -> str:
    """Without control characters, which could move the cursor or hide text."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
