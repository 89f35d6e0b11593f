"""The summary as text for a terminal, correct at 80 columns and without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from perftool import units
from perftool.analysis.history import Series, changes
from perftool.records import (
    DeviceFitness,
    Fitness,
    FitnessRating,
    Machine,
    ScenarioDescription,
    SideBySide,
    Summary,
    TraceReport,
    VariantSummary,
)
from perftool.report import answers, beside, checks, method, patches, profiles, scripts, wording

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from perftool.analysis.search import Standing

WORST_SHOWN = 3  # slow steps; the page has more
STYLES = {"faster": "green", "slower": "red", "improvement": "green", "regression": "red"}


class _Page:
    """Lines and tables, laid out by rich into a string. Whatever users named is text, never markup."""

    def __init__(self, width: int, colour: bool) -> None:
        from rich.console import Console

        self._buffer = io.StringIO()
        self._console: Console = Console(
            file=self._buffer,
            width=width,
            force_terminal=colour,
            color_system="standard" if colour else None,
            highlight=False,
            legacy_windows=False,
            _environ={},  # pure: nothing but the arguments decides
        )

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(_text(text), style=style)

    def title(self, text: str) -> None:
        self._console.print()
        self.line(text, style="bold")

    def code(self, text: str) -> None:
        """Lines to copy: neither wrapped nor indented, so that they can be pasted."""
        for line in text.splitlines():
            self._buffer.write(f"{wording.printable(line)}\n")

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Names with texts that wrap beside them."""
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(overflow="fold", max_width=self._console.width // 2)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(_text(name), _text(text))
        self._console.print(table)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column wraps between settings, the others not at all."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
        for number, heading in enumerate(headings):
            table.add_column(heading, overflow="fold", no_wrap=number > 0)
        for first, *cells in rows:
            style = next((STYLES[cell] for cell in cells if cell in STYLES), None)
            lines = Text(wording.visible(first).replace(", ", ",\n"))
            table.add_row(lines, *(_text(cell) for cell in cells), style=style)
        self._console.print(table)

    def text(self) -> str:
        """Everything so far, without trailing spaces."""
        return "\n".join(line.rstrip() for line in self._buffer.getvalue().splitlines())


def render(summary: Summary, *, width: int = 80, colour: bool = False) -> str:
    """The whole story in one screen: the answer, its costs, the code, what else was tried, and how sure it is."""
    page = _Page(width, colour)
    page.line(answers.headline(summary), style="bold")
    if whole := answers.whole_loop(summary):
        page.line(whole)
    match summary.command:
        case "tune":
            _tuned(page, summary)
        case "compare":
            _compared(page, summary)
        case "profile" | "trace" | "run":
            _profiled(page, summary)
        case "check":
            _checked(page, summary)
    _reasons(page, scripts.TITLE, scripts.lines(summary.script))
    for warning in answers.warnings(summary):
        page.line()
        page.line(f"Warning: {warning}", style="yellow")
    page.line()
    page.line(f"On {method.machine_text(summary.machine)}; {method.time_text(summary)}.")
    return page.text()


def _profiled(page: _Page, summary: Summary) -> None:
    """What is wrong first, then the figures."""
    found = summary.explained
    if found is not None:
        page.title("Findings")
        page.pairs(profiles.finding_rows(summary.findings))
        if not summary.findings:
            page.line(profiles.NOTHING_FOUND)
        page.title("Where a step's time goes")
        page.pairs(profiles.phase_lines(found))
        page.title("Slow steps")
        page.line(profiles.slow_text(found))
        if found.causes:
            page.table(profiles.CAUSE_HEADINGS, profiles.cause_rows(found))
            page.line()
            page.table(profiles.WORST_HEADINGS, profiles.worst_rows(found)[:WORST_SHOWN])
    if summary.distance is not None:
        page.title("Distance to the limit")
        page.pairs(profiles.limit_lines(summary.distance))
    page.title("Figures")
    page.pairs([*profiles.figure_lines(summary.baseline, summary.sample_unit), *profiles.memory_lines(summary.memory)])


def render_beside(found: SideBySide, *, width: int = 80, colour: bool = False) -> str:
    """Two sessions of the same training."""
    page = _Page(width, colour)
    page.line(beside.headline(found), style="bold")
    page.pairs(beside.advice(found))
    page.line()
    page.line(beside.TRAVELS)
    rows = beside.rows(found)
    if rows:
        page.title(beside.title(found))
        page.table(beside.HEADINGS, rows)
        page.line(beside.CHANGE_RULE)
    _reasons(page, "Not measured", beside.lost(found))
    shares = beside.share_rows(found) if wording.is_alone(found.first) else []
    if shares:
        page.title(beside.SHARES_TITLE)
        page.table(beside.SHARE_HEADINGS, shares)
    page.title(beside.OWN_TITLE)
    page.table(beside.OWN_HEADINGS, beside.own_rows(found))
    page.title(beside.DIFFERING_TITLE)
    page.pairs([(name, f"{one} / {other}") for name, one, other in beside.differing_rows(found)])
    for warning in beside.warnings(found):
        page.line()
        page.line(f"Warning: {warning}", style="yellow")
    return page.text()


def render_trace(report: TraceReport, *, width: int = 80) -> str:
    """What a trace shows, where it is, and how to open it."""
    page, facts = _Page(width, colour=False), report.facts
    page.line(
        f"{report.workload}: {units.counted(facts.steps, 'step')} traced, {units.counted(facts.events, 'event')}, "
        f"{units.size(report.size_bytes)}"
    )
    page.pairs(profiles.trace_lines(report))
    for warning in report.warnings:
        page.line()
        page.line(f"Warning: {warning}")
    page.title("Perfetto: drag this file onto https://ui.perfetto.dev")
    page.code(f"{report.folder}/trace.json")
    page.title("TensorBoard")
    page.code(f"tensorboard --logdir {quote(report.folder)}")
    if not any("tfevents" in name for name in report.files):
        page.line(
            "TensorBoard is not installed, so its folder has the trace and no scalars, text and HParams: "
            "pip install tensorboard, and trace again."
        )
    return page.text()


def _tuned(page: _Page, summary: Summary) -> None:
    """The recommendation; every setting once, as part of it or among those not advised."""
    advice = summary.recommendation
    _sure(page, summary)
    if advice is not None:
        shown = [summary.baseline, *(one for one in summary.variants if one.settings == advice.settings)]
        page.title("What it costs")
        page.pairs(answers.costs(summary, advice))
        if use := scripts.use(summary):
            page.title(scripts.USE_TITLE)
            page.code(use)
        if patch := patches.lines(summary):
            page.title(patches.TITLE)
            if taken := patches.command(summary):
                page.code(taken)
            page.pairs(patch)
        page.title("Paste into your training")
        page.code(advice.code)
        if advice.diff and advice.script:
            page.line("Where each line goes: 'Lines to change' in report.md, and recommended.py, which runs.")
        if len(advice.per_setting) > 1:
            page.title(f"What each setting buys, in {wording.goal_name('throughput', summary.sample_unit)}")
            page.pairs(answers.contributions(advice))
    else:
        if summary.provisional is not None and summary.provisional.code:
            page.title(answers.PROVISIONAL_TITLE)
            page.code(summary.provisional.code)
        # Combinations are steps of the search; the page has them all.
        shown = [one for one in wording.measured(summary) if one is summary.baseline or len(one.settings) == 1]
    _variants(page, summary, [one for one in shown if one.status == "measured"])
    already = [one.settings for one in shown]
    _reasons(page, "Not advised", wording.rejected([one for one in summary.rejected if one.settings not in already]))
    if summary.smallest_batch is not None:
        page.line()
        page.line(answers.smallest_batch(summary.smallest_batch))
    if summary.parity is not None and advice is None:
        page.line()
        page.line(f"Numerics: {answers.parity(summary.parity)}.")
    _reasons(page, "Not measured", wording.lost(summary))


def _compared(page: _Page, summary: Summary) -> None:
    _sure(page, summary)
    _variants(page, summary, wording.measured(summary))
    _reasons(page, "Notes", wording.notes(summary))
    _reasons(page, "Not measured", wording.lost(summary))


def _checked(page: _Page, summary: Summary) -> None:
    _sure(page, summary)
    if summary.check is not None:
        page.line()
        page.table(checks.HEADINGS, checks.rows(summary.check))
        _reasons(page, "Notes", checks.notes(summary.check))
    else:
        page.line()
        page.pairs(checks.for_later_lines(summary))


def _sure(page: _Page, summary: Summary) -> None:
    for sentence in method.how_sure(summary):
        page.line(sentence)


def _variants(page: _Page, summary: Summary, variants: Sequence[VariantSummary]) -> None:
    if variants:
        page.line()
        headings = wording.headings(wording.VARIANT_HEADINGS, summary)
        page.table(headings, (wording.variant_cells(one, summary) for one in variants))
        if note := wording.p50_note(summary, variants):
            page.line(note)


def _reasons(page: _Page, title: str, rows: wording.Pairs) -> None:
    if rows:
        page.title(title)
        page.pairs(rows)


def standings_table(standings: Sequence[Standing]) -> Table:
    """The best combinations of a search that goes on, for a live display."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("best so far", overflow="fold")
    table.add_column("expected, not confirmed", no_wrap=True)
    for one in standings:
        table.add_row(_text(wording.settings_text(one.settings)), _text(wording.estimate_text(one.gain())))
    return table


# ----------------------------------------------------------------------------------------------------- the history


def render_history(series: Sequence[Series], *, width: int = 80) -> str:
    """Each series as lines of points, oldest first, with its changes of level."""
    page = _Page(width, colour=False)
    for number, one in enumerate(series):
        if number:
            page.line()
        found = {change.index: change for change in changes(one.log_ratios)}
        page.line(checks.history_headline(one, list(found.values())), style="bold")
        shown = enumerate(zip(one.entries, checks.history_rows(one), _dots(one.log_ratios), strict=True))
        for index, (entry, (when, commit, ratio), dot) in shown:
            told = checks.change_text(found[index]) if index in found else ""
            outcome = "" if entry.outcome == "passed" else entry.outcome
            page.code(f"{when}  {commit:<8} {ratio:>6}  {dot}  {told or outcome}".rstrip())
    return page.text()


def _dots(log_ratios: NDArray[np.float64], columns: int = 24) -> list[str]:
    """The points of a series, each in a line of so many columns."""
    low, high = float(min(0.0, *log_ratios)), float(max(0.0, *log_ratios))
    span = max(high - low, 0.02)
    zero = round((0.0 - low) / span * (columns - 1))
    lines = []
    for value in log_ratios:
        line = [" "] * columns
        line[zero] = "|"
        line[round((float(value) - low) / span * (columns - 1))] = "o"
        lines.append("".join(line))
    return lines


# ------------------------------------------------------------------------------------------- machine and scenarios


def render_machine(machine: Machine, fitness: Fitness, rating: FitnessRating, *, width: int = 80) -> str:
    """What a machine is, and how fit it is for measuring now."""
    page = _Page(width, colour=False)
    page.pairs(
        [
            ("CPU", f"{machine.cpu_model}, {units.counted(machine.usable_cores, 'usable core')}"),
            ("matrix units", ", ".join(machine.matrix_units) or "none found"),
            ("memory", f"{units.size(machine.memory_bytes)}, {units.size(machine.memory_available_bytes)} available"),
            ("device", _device(machine)),
            ("system", f"{machine.system}, {machine.libc or 'C library unknown'}"),
            ("torch", f"{machine.torch_version}, {units.counted(machine.torch_threads, 'thread')}"),
            ("compiler", machine.compiler or "none found: torch.compile needs one on a CPU"),
            ("environment", method.environment_text(machine)),
        ]
    )
    host_cores = fitness.host_cores or fitness.cores
    page.title(f"For measuring it is {rating.rating} now.")
    for reason in rating.reasons:
        page.line(f"- {reason}")
    page.line()
    page.pairs(
        [
            ("other work", _others(fitness)),
            ("load", f"{units.decimal(fitness.load_average_1min)} on {units.counted(host_cores, 'core')}"),
            ("steal", units.share(fitness.steal_share)),
            ("waiting for a core", units.share(fitness.pressure_share)),
            ("stopped by quota", _counted(fitness.throttled_periods, "time")),
            ("governor", fitness.governor or units.UNKNOWN),
            ("CPU temperature", units.temperature(fitness.cpu_temperature_c)),
            ("slowed by heat", _counted(fitness.heat_slowdowns, "time")),
            ("swap", f"{units.size(fitness.swap_used_bytes)} used, {units.size(fitness.swapped_bytes)} moved"),
            *(_device_fitness(fitness.device) if machine.device_name is not None else []),
            ("looked for", units.duration(fitness.window_s * 1e9)),
        ]
    )
    return page.text()


def _others(fitness: Fitness) -> str:
    """What other programs take, and which take most."""
    names = ", ".join(f"{one.name} {units.decimal(one.cores)}" for one in fitness.busy_processes)
    cores = f"{units.decimal(fitness.others_cores)} of {units.counted(fitness.cores, 'core')}"
    return f"{cores}: {names}" if names else cores


def _counted(number: int | None, what: str) -> str:
    return units.UNKNOWN if number is None else units.counted(number, what)


def _device_fitness(device: DeviceFitness | None) -> wording.Pairs:
    if device is None:
        return [("GPU", units.UNKNOWN)]
    held = units.UNKNOWN if device.held_down_by is None else ", ".join(device.held_down_by) or "nothing"
    slowdown = "" if device.slowdown_c is None else f", slows down at {units.temperature(device.slowdown_c)}"
    return [
        ("GPU busy", units.share(device.busy_share)),
        ("GPU processes", units.count(device.processes)),
        ("GPU memory", f"{units.size(device.used_bytes)} used"),
        ("GPU temperature", units.temperature(device.temperature_c) + slowdown),
        ("GPU clock held by", held),
    ]


def _device(machine: Machine) -> str:
    if machine.device_name is None:
        return machine.device
    capability = ".".join(str(number) for number in machine.device_capability or []) or units.UNKNOWN
    return (
        f"{machine.device}: {machine.device_name}, {units.size(machine.device_memory_bytes)}, capability {capability}, "
        f"CUDA {machine.cuda_version or units.UNKNOWN}, driver {machine.driver_version or units.UNKNOWN}"
    )


def render_scenarios(scenarios: Iterable[ScenarioDescription], *, width: int = 80) -> str:
    """What can be varied here, and what cannot, with the reason."""
    page = _Page(width, colour=False)
    for number, scenario in enumerate(scenarios):
        if number:
            page.line()
        page.line(scenario.name, style="bold")
        page.pairs([("", scenario.summary), *(("", text) for text in _offers(scenario))])
    return page.text()


def render_scenario(scenario: ScenarioDescription, *, width: int = 80) -> str:
    """One scenario's documentation, its values here, and the code of each."""
    page = _Page(width, colour=False)
    page.line(f"{scenario.name}: {scenario.summary}", style="bold")
    page.line()
    page.pairs([*scenario.sections.items(), ("Changes", scenario.changes)])
    page.line()
    for text in _offers(scenario):
        page.line(text)
    for value, places in scenario.codes.items():
        for place, lines in places.items():
            page.title(f"{scenario.name}={value}, {place.replace('_', ' ')}")
            page.code(lines)
    return page.text()


def _offers(scenario: ScenarioDescription) -> list[str]:
    values = (f"{value} (default)" if value == scenario.default else value for value in scenario.available)
    return [
        f"values here: {', '.join(values) or 'none'}",
        *(f"not here: {value}, since {reason}" for value, reason in scenario.refused.items()),
        *(f"only if asked for: {value}, since {reason}" for value, reason in scenario.discouraged.items()),
    ]


def _text(text: str) -> Text:
    from rich.text import Text

    return Text(wording.visible(text))
