"""The summary as one page to send around: a file that needs no network, no server and hardly any script.

Pure: a session and its summary in, text out. Sentences come from `wording` and the modules beside it, pictures from
`plots`; whatever users named is escaped by the template.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec.structs import replace

from perftool import units
from perftool.analysis.pairs import launches_of
from perftool.analysis.slow_steps import slow_steps, watched
from perftool.analysis.tradeoffs import by_batch
from perftool.records import (
    EXPLAIN,
    Beside,
    Check,
    Comparison,
    Estimate,
    Explained,
    Quantiles,
    Recommendation,
    Session,
    SettingEffect,
    SideBySide,
    Summary,
    VariantSummary,
)
from perftool.report import answers, beside, captions, checks, method, patches, plots, profiles, scripts, wording
from perftool.report.thin import Envelope, Floats, bars, envelope

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
ROWS_SHOWN = 40  # of a long list of variants; the rest is folded
LEAST_STEPS = 8  # for a picture of them
SERIES = ("first", "second")  # how the baseline and what is compared with it are drawn


@dataclass(frozen=True)
class Figure:
    """A plot with what it shows in words, and in numbers for who cannot see it."""

    title: str
    svg: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Row:
    """A row of a table one of whose cells is a drawing."""

    name: str
    svg: str
    cells: Sequence[str]
    mark: Literal["", "yes", "no"] = ""  # it is what the answer is about: a gain, or a loss


def render(session: Session, summary: Summary) -> str:
    """The whole page."""
    found = summary.explained
    focus = answers.best(summary)
    return _page(
        "report.html.j2",
        summary=summary,
        said=partial(units.told_in, unit=summary.sample_unit),
        headings=wording.headings(wording.VARIANT_HEADINGS, summary),
        title=answers.headline(summary),
        figure=_headline_figure(summary, focus),
        key_figures=_key_figures(summary, focus),
        variants=_variant_rows(summary, focus),
        axis=_variants_head(summary),
        steps=_steps(session, summary, focus),
        phases=_phases(found) if found is not None else [],
        relations=[one for one in (*_front(summary), _batches(session, summary)) if one is not None],
        front=_numbered(summary) if wording.has_variants(summary) else [],
        checked=_check_rows(summary),
        check_axis=_check_head(summary),
        parts=_parts(summary),
        growth=[*_growth(session), *filter(None, [_fit(summary)])],
        contributions=_contribution_rows(summary),
        contributions_axis=_contributions_head(summary),
        bounds=_bounds(summary),
        notes=_grouped(wording.notes(summary)),
        metrics=[
            (wording.settings_text(one.settings), *row)
            for one in (wording.measured(summary) if wording.has_variants(summary) else ())
            for row in wording.comparison_rows(one, summary.sample_unit)
        ],
        not_tested=method.not_tested(session, summary),
        rows_shown=ROWS_SHOWN,
    )


def render_beside(found: SideBySide) -> str:
    """The page of two sessions of the same training."""
    axis = _beside_axis(found)
    return _page(
        "beside.html.j2",
        found=found,
        title=beside.headline(found),
        axis=plots.interval_axis(axis, units.times, captions.ratio_axis(found.first.sample_unit)),
        rows=[
            Row(name, _beside(axis, one, name), cells)
            for one, (name, *cells) in zip(found.variants, beside.rows(found), strict=True)
        ],
    )


def _beside_axis(found: SideBySide) -> plots.Axis:
    told = [ratio for one in found.variants for ratio in (one.first, one.second) if ratio is not None]
    ends = [end for one in told for end in (one.low, one.high) if end is not None]
    return plots.ratio_axis([one.ratio for one in told], ends)


def _beside(axis: plots.Axis, one: Beside, name: str) -> str:
    """The first session's interval hollow, the second's filled below."""
    drawn: tuple[tuple[str, Comparison | None, plots.Mark], ...] = (
        ("first", one.first, "open"),
        ("second", one.second, "better"),
    )
    return "".join(
        plots.interval(
            axis, ratio.ratio, ratio.low, ratio.high, mark, f"{name}, {place}: {wording.comparison_text(ratio)}"
        )
        for place, ratio, mark in drawn
        if ratio is not None
    )


# ---------------------------------------------------------------------------------------------------- first screen


def _headline_figure(summary: Summary, focus: VariantSummary | None) -> tuple[str, str] | None:
    """The one number, and what it counts."""
    advice = summary.recommendation
    if advice is not None:
        gain = advice.gain or advice.speedup
        return units.ratio(gain.ratio), f"{_range(gain)} the {wording.goal_name(advice.metric, summary.sample_unit)}"
    if wording.is_for_later(summary):
        rates = (units.rate(one.samples_per_second, summary.sample_unit) for one in summary.variants)
        return next(rates, units.UNKNOWN), ""
    compared = _gated(summary) or (wording.throughput_of(focus) if focus is not None else None)
    if compared is not None:
        goal = wording.goal_name("throughput", summary.sample_unit)
        return units.ratio(compared.ratio), f"{_range(compared)} the {goal}"
    if wording.is_alone(summary):
        return units.rate(summary.baseline.samples_per_second, summary.sample_unit), ""
    return None


def _range(found: Estimate | Comparison) -> str:
    """The interval of a ratio alone: "(1.31 to 1.37)"."""
    return units.ratio_interval(found.ratio, found.low, found.high).removeprefix(units.ratio(found.ratio)).strip()


def _key_figures(summary: Summary, focus: VariantSummary | None) -> wording.Pairs:
    """What the answer costs, or what a profile is in short."""
    if summary.check is not None:
        return [(one, f"{told}, {verdict}") for one, told, _, verdict in checks.rows(summary.check)]
    if wording.is_for_later(summary):
        return checks.for_later_lines(summary)
    if summary.recommendation is not None:
        return answers.costs(summary, summary.recommendation)
    if focus is not None:
        rows = wording.comparison_rows(focus, summary.sample_unit)
        return [(name, f"{ratio}, {verdict}") for name, ratio, verdict, _ in rows]
    if not wording.is_alone(summary):
        return []
    return profiles.finding_rows(summary.findings) or profiles.figure_lines(summary.baseline, summary.sample_unit)


def _gated(summary: Summary) -> Comparison | None:
    """The throughput of a check."""
    metrics = summary.check.metrics if summary.check is not None else []
    return next((one.confirmation or one.first for one in metrics if one.metric == "throughput"), None)


def _check_axis(check: Check) -> plots.Axis:
    found = [one.confirmation or one.first for one in check.metrics]
    told = [one for one in found if one is not None]
    return plots.ratio_axis([one.ratio for one in told], [end for one in told for end in (one.low, one.high) if end])


def _check_head(summary: Summary) -> str:
    return "" if summary.check is None else plots.interval_axis(_check_axis(summary.check), units.times, "now / before")


def _check_rows(summary: Summary) -> list[Row]:
    """Every metric of a check with its interval."""
    if summary.check is None:
        return []
    axis = _check_axis(summary.check)
    marks: dict[str, plots.Mark] = {"improvement": "better", "regression": "worse"}
    emphasis: dict[str, Literal["yes", "no"]] = {"improvement": "yes", "regression": "no"}
    rows = []
    for one, (name, *cells) in zip(summary.check.metrics, checks.figure_rows(summary.check), strict=True):
        found = one.confirmation or one.first
        mark = marks.get(one.verdict, "open")
        told = f"{name}: {' '.join(cells)}"
        drawn = "" if found is None else plots.interval(axis, found.ratio, found.low, found.high, mark, told)
        rows.append(Row(name, drawn, cells, mark=emphasis.get(one.verdict, "")))
    return rows


# --------------------------------------------------------------------------------------------------------- variants


def _compared(summary: Summary) -> list[tuple[VariantSummary, Comparison | None]]:
    return [(one, wording.throughput_of(one)) for one in wording.measured(summary)]


def _axis(summary: Summary) -> plots.Axis:
    found = [comparison for _, comparison in _compared(summary) if comparison is not None]
    ends = [end for one in found for end in (one.low, one.high) if end is not None]
    return plots.ratio_axis([one.ratio for one in found], ends)


def _variants_head(summary: Summary) -> str:
    return plots.interval_axis(_axis(summary), units.times, captions.ratio_axis(summary.sample_unit))


def _variant_rows(summary: Summary, focus: VariantSummary | None) -> list[Row]:
    """Every measured variant with its interval, fastest first."""
    axis = _axis(summary)
    rows = []
    for one, comparison in _compared(summary):
        name, *cells = wording.variant_cells(one, summary)
        drawn = _interval(axis, comparison, f"{name}: {cells[0]} {cells[1]}")
        rows.append(Row(name, drawn, cells, mark="yes" if one is focus else ""))
    return rows


def _interval(axis: plots.Axis, comparison: Comparison | None, name: str) -> str:
    if comparison is None:
        return plots.interval(axis, 1.0, None, None, "base", name)
    marks: dict[str, plots.Mark] = {"better": "better", "worse": "worse"}
    mark = marks.get(comparison.verdict, "open")
    return plots.interval(axis, comparison.ratio, comparison.low, comparison.high, mark, name)


def _contribution_rows(summary: Summary) -> list[Row]:
    """Each setting of the recommendation: alone above, on top of the others below."""
    advice = summary.recommendation
    if advice is None or len(advice.per_setting) < 2:
        return []
    axis = _contributions_axis(advice)
    names = dict(answers.contributions(advice))
    return [
        Row(name, _contribution(axis, effect, f"{name}: {told}"), [told])
        for (name, told), effect in zip(names.items(), advice.per_setting, strict=True)
    ]


def _contributions_axis(advice: Recommendation) -> plots.Axis:
    told = [found for one in advice.per_setting for found in (one.alone, one.together) if found is not None]
    return plots.ratio_axis([one.ratio for one in told], [end for one in told for end in (one.low, one.high)])


def _contributions_head(summary: Summary) -> str:
    advice = summary.recommendation
    if advice is None:
        return ""
    return plots.interval_axis(_contributions_axis(advice), units.times, captions.ratio_axis(summary.sample_unit))


def _contribution(axis: plots.Axis, effect: SettingEffect, name: str) -> str:
    drawn: list[tuple[Estimate | None, plots.Mark]] = [(effect.alone, "open"), (effect.together, "better")]
    return "".join(plots.interval(axis, one.ratio, one.low, one.high, mark, name) for one, mark in drawn if one)


def _grouped(rows: wording.Pairs) -> wording.Pairs:
    """Texts of the same name in one row."""
    names = dict.fromkeys(name for name, _ in rows)
    return [(name, "; ".join(text for other, text in rows if other == name)) for name in names]


# ------------------------------------------------------------------------------------------------------- step times


@dataclass(frozen=True)
class _Times:
    """The step times of one variant, or the means of its blocks where it has none of single steps."""

    name: str
    at_ns: Floats  # of measuring, since its begin
    step_ns: Floats
    are_blocks: bool
    known: Quantiles  # None for what so few steps do not tell


def _times(session: Session, variant: int, name: str, told: VariantSummary) -> _Times | None:
    known = told.step_ns or Quantiles(p50=None, p95=None, p99=None)
    own = {launch.launch for launch in launches_of(session, variant) if launch.stage != EXPLAIN}
    ended_ns = np.cumsum([block.wall_ns for block in session.blocks], dtype=float)
    placed = [(block, end) for block, end in zip(session.blocks, ended_ns, strict=True) if block.launch in own]
    stepped = [(block, end) for block, end in placed if block.step_ns]
    if not stepped:
        means = np.array([block.wall_ns / block.steps for block, _ in placed], dtype=float)
        times = _Times(name, np.array([end for _, end in placed], dtype=float), means, True, known)
    else:
        counts = [len(block.step_ns) for block, _ in stepped]
        step_ns = np.array([time_ns for block, _ in stepped for time_ns in block.step_ns], dtype=float)
        total_ns = np.cumsum(step_ns)
        last_ns = total_ns[np.cumsum(counts) - 1]
        # Each block ends when it ended; its steps lie before that.
        at_ns = total_ns + np.repeat(np.array([end for _, end in stepped]) - last_ns, counts)
        times = _Times(name, at_ns, step_ns, False, known)
    return times if len(times.step_ns) >= LEAST_STEPS else None


def _steps(session: Session, summary: Summary, focus: VariantSummary | None) -> list[Figure]:
    """Over time and as a distribution, of the baseline and of what is advised; slow steps with their causes."""
    check = summary.check
    series = [_times(session, 0, check.against if check is not None else "baseline", summary.baseline)]
    if check is not None:
        series += [_times(session, 1, check.now, one) for one in summary.variants]
    elif focus is not None and focus.settings in session.variants:
        number = session.variants.index(focus.settings)
        series.append(_times(session, number, wording.settings_text(focus.settings), focus))
    known = [one for one in series if one is not None]
    shown = [one for one in known if one.are_blocks == known[0].are_blocks]
    figures = [_slow(session)] if len(session.watched_blocks) else []
    if shown:
        figures += [_over_time(shown), _distribution(shown)]
    return [figure for figure in figures if figure is not None]


def _told(series: Sequence[_Times]) -> str:
    return captions.series_caption([(one.name, len(one.step_ns)) for one in series], blocks=series[0].are_blocks)


def _band(one: Envelope, name: str, class_: str) -> plots.Band:
    return plots.Band(name=name, class_=class_, at=one.at, low=one.low, middle=one.middle, high=one.high)


QUANTILES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
QUANTILE_HEADINGS = ("variant", "fastest", "p5", "p50", "p95", "p99", "slowest")


def _quantile_row(one: _Times) -> tuple[str, ...]:
    """Under QUANTILE_HEADINGS; of the tails only what there are steps enough for."""
    fastest, p5, p50, p95, p99, slowest = (
        units.duration(float(value)) for value in np.quantile(one.step_ns, QUANTILES)
    )
    tails = [
        text if known is not None else "not enough steps"
        for text, known in ((p95, one.known.p95), (p99, one.known.p99))
    ]
    return (one.name, fastest, p5, p50, *tails, slowest)


def _over_time(series: Sequence[_Times]) -> Figure:
    bands = [
        _band(envelope(one.at_ns, one.step_ns), one.name, class_) for one, class_ in zip(series, SERIES, strict=False)
    ]
    drawn = plots.timeline("Step times over time", _told(series), bands, [], _since, _since, "time of measuring")
    return Figure(
        title="Step times over time",
        svg=_legend(series) + drawn,
        caption=f"{_told(series)} {captions.CAPTIONS['steps']}",
        headings=QUANTILE_HEADINGS,
        rows=[_quantile_row(one) for one in series],
    )


def _legend(series: Sequence[_Times]) -> str:
    """Names of two series beside the shades they are drawn in; nothing to tell apart where there is one."""
    if len(series) < 2:
        return ""
    return "".join(plots.key(wording.visible(one.name), class_) for one, class_ in zip(series, SERIES, strict=False))


def _since(time_ns: float) -> str:
    return units.duration(time_ns) if time_ns else "0"


def _distribution(series: Sequence[_Times]) -> Figure:
    found = bars([one.step_ns for one in series])
    shapes = [
        plots.Shape(
            name=one.name,
            class_=class_,
            heights=shares,
            marks=[(f"p50 {units.duration(middle)}", middle)],
        )
        for one, class_, shares in zip(series, SERIES, found.shares, strict=False)
        for middle in [float(np.median(one.step_ns))]
    ]
    above = captions.beyond([(one.name, more) for one, more in zip(series, found.above, strict=True)])
    drawn = plots.histogram(
        "How long the steps take",
        _told(series),
        shapes,
        plots.Axis(found.low, found.high, log=found.log),
        units.duration,
        units.share,
        "step time",
    )
    return Figure(
        title="How long the steps take",
        svg=_legend(series) + drawn,
        caption=" ".join(filter(None, (_told(series), captions.CAPTIONS["distribution"], above))),
        headings=QUANTILE_HEADINGS,
        rows=[_quantile_row(one) for one in series],
    )


def _slow(session: Session) -> Figure | None:
    """The watched steps, their slow ones by cause; nothing where there are none."""
    steps = watched(session.watched_blocks)
    slow = slow_steps(steps) if len(steps.step_ns) >= LEAST_STEPS else []
    if not slow:
        return None
    thinned = envelope(steps.started_ns.astype(float), steps.step_ns.astype(float))
    causes = dict.fromkeys(one.cause for one in slow)
    lanes = []
    for cause in causes:
        own = [one for one in slow if one.cause == cause]
        lanes.append(plots.Lane(cause, [one.started_ns for one in own], [one.step_ns for one in own]))
    told = captions.series_caption([("watched", len(steps.step_ns))], blocks=False)
    drawn = plots.timeline(
        "Slow steps and their causes",
        told,
        [_band(thinned, "watched", "first")],
        lanes,
        _since,
        _since,
        "since the first watched step",
    )
    worst = sorted(slow, key=lambda one: -one.step_ns)[:ROWS_SHOWN]
    return Figure(
        title="Slow steps and their causes",
        svg=drawn,
        caption=f"{captions.CAPTIONS['steps']} {captions.CAPTIONS['slow']}",
        headings=profiles.WORST_HEADINGS,
        rows=profiles.slow_rows(worst),
    )


# -------------------------------------------------------------------------------------------------------- relations


def _front(summary: Summary) -> list[Figure]:
    """Throughput against memory and against jitter, with the variants that nothing beats filled."""
    measured = wording.measured(summary)
    if len(measured) < 2 or not summary.pareto or not wording.has_variants(summary):
        return []
    front = [one for one in measured if ({} if one is summary.baseline else one.settings) in summary.pareto]
    numbers = {id(one): str(number) for number, one in enumerate(front, 1)}

    def spots(cost: Callable[[VariantSummary], float | None]) -> list[plots.Spot]:
        found = []
        for one in measured:
            throughput, paid = wording.throughput_of(one), cost(one)
            if paid is not None and (throughput is not None or one is summary.baseline):
                mark: plots.Mark = "better" if id(one) in numbers else "open"
                ratio = throughput.ratio if throughput is not None else 1.0
                found.append(plots.Spot(x=ratio, y=paid, mark=mark, label=numbers.get(id(one), "")))
        return found

    def uneven(one: VariantSummary) -> float | None:
        jitter = one.versus_baseline.get("jitter")
        return 1.0 if one is summary.baseline else jitter.ratio if jitter is not None else None

    axis = captions.ratio_axis(summary.sample_unit)
    drawn: tuple[tuple[str, list[plots.Spot], plots.Label], ...] = (
        ("Throughput and memory", spots(wording.peak_memory_bytes), units.size),
        ("Throughput and jitter", spots(uneven), units.times),
    )
    return [
        Figure(
            title=title,
            svg=plots.scatter(title, captions.CAPTIONS["front"], found, units.times, label, axis),
            caption="",  # one below both, with the table
            headings=(),
            rows=(),
        )
        for title, found, label in drawn
        if len(found) >= 2
    ]


def _numbered(summary: Summary) -> list[tuple[str, ...]]:
    """The variants of the front under the numbers that they have in the plots."""
    return [(units.count(number), *row) for number, row in enumerate(wording.tradeoffs(summary), 1)]


def _batches(session: Session, summary: Summary) -> Figure | None:
    """Samples per second by batch size, where that was varied alone."""
    measured = [one for one in summary.variants if one.status == "measured"]
    sizes = by_batch(session, [replace(summary.baseline, settings={}), *measured])
    if len(sizes) < 2:
        return None
    compared = {size: wording.throughput_of(one) for size, one in sizes.items()}
    spots = [
        plots.Spot(x=size, y=one.ratio, mark="better", low=one.low, high=one.high)
        if one is not None
        else plots.Spot(x=size, y=1.0, mark="base")
        for size, one in compared.items()
    ]
    return Figure(
        title="Batch size and throughput",
        svg=plots.scatter(
            "Batch size and throughput",
            captions.CAPTIONS["batches"],
            spots,
            units.count,
            units.times,
            "batch size",
            curve=True,
            log_x=True,
        ),
        caption=captions.CAPTIONS["batches"]
        + (f" {answers.smallest_batch(summary.smallest_batch)}" if summary.smallest_batch else ""),
        headings=("batch size", "samples/s"),
        rows=[
            (units.count(size), wording.comparison_text(one) if one else units.ratio(1.0))
            for size, one in compared.items()
        ],
    )


def _fit(summary: Summary) -> Figure | None:
    """Peak memory by batch size, from which the largest batch was told."""
    fit = summary.memory.fit if summary.memory is not None else None
    if fit is None or len(fit.points) < 2:
        return None
    spots = [plots.Spot(x=one.batch_size, y=one.peak_bytes, mark="better") for one in fit.points]
    return Figure(
        title="Batch size and memory",
        svg=plots.scatter(
            "Batch size and memory", captions.CAPTIONS["fit"], spots, units.count, units.size, "batch size", curve=True
        ),
        caption=captions.CAPTIONS["fit"],
        headings=("batch size", "peak"),
        rows=[(units.count(one.batch_size), units.size(one.peak_bytes)) for one in fit.points],
    )


# ------------------------------------------------------------------------------------------------- parts of a whole


def _phases(found: Explained) -> list[Figure]:
    if not found.phases:
        return []
    return [
        _stack(
            "Phases of a step",
            "phases",
            [
                (one.name, one.step_ns, text)
                for one, (_, text) in zip(found.phases, profiles.phase_lines(found), strict=False)
            ],
        )
    ]


def _parts(summary: Summary) -> list[Figure]:
    parts = summary.memory.parts if summary.memory is not None else None
    if parts is None:
        return []
    held = (
        ("parameters", parts.parameters_bytes),
        ("gradients", parts.gradients_bytes),
        ("optimizer state", parts.optimizer_bytes),
        ("buffers", parts.buffers_bytes),
        ("activations", parts.activations_bytes),
        ("batch", parts.batch_bytes),
    )
    return [_stack("Memory of a step", "parts", [(name, size, units.size(size)) for name, size in held if size])]


def _stack(title: str, caption: str, parts: Sequence[tuple[str, float, str]]) -> Figure:
    """A bar of parts. Its table carries the swatches, so it is its legend, too."""
    told = "; ".join(f"{name} {text}" for name, _, text in parts)
    return Figure(
        title=title,
        svg=plots.stacked(title, told, [size for _, size, _ in parts]),
        caption=captions.CAPTIONS[caption],
        headings=(),
        rows=[(plots.swatch(number), name, text) for number, (name, _, text) in enumerate(parts)],
    )


def _growth(session: Session) -> list[Figure]:
    """Memory of the launch that was looked at most often."""
    launches = [one.launch for one in session.memory_samples]
    if not launches:
        return []
    longest = max(dict.fromkeys(launches), key=launches.count)
    samples = [one for one in session.memory_samples if one.launch == longest]
    if len(samples) < LEAST_STEPS:
        return []
    steps, host_bytes = np.array([(one.steps, one.host_bytes) for one in samples], dtype=float).T
    drawn = plots.timeline(
        "Memory over the steps",
        captions.CAPTIONS["growth"],
        [_band(envelope(steps, host_bytes - host_bytes[0]), "host memory", "first")],
        [],
        units.count,
        units.size,
        "steps",
        height_px=140,
        zero=False,
    )
    first, last = samples[0], samples[-1]
    return [
        Figure(
            title="Memory over the steps",
            svg=drawn,
            caption=captions.CAPTIONS["growth"],
            headings=("steps", "host memory"),
            rows=[(units.count(one.steps), units.size(one.host_bytes)) for one in (first, last)],
        )
    ]


def _bounds(summary: Summary) -> list[Row]:
    """The least time by each mode, as a part of the step."""
    distance = summary.distance
    if distance is None:
        return []
    names = [profiles.bound_name(one) for one in distance.bounds]
    return [
        Row(name, plots.bar(f"{name}: {units.share(one.bound_ns / distance.step_ns)} of the step", share, mark), [told])
        for name, one in zip(names, distance.bounds, strict=True)
        for share in [one.bound_ns / distance.step_ns]
        for mark in [_bar_mark(one.as_it_runs)]
        for told in [f"{units.share(share)} of the step"]
    ]


def _bar_mark(as_it_runs: bool) -> plots.Mark:
    return "better" if as_it_runs else "worse"


# -------------------------------------------------------------------------------------------------------- the paper


def _page(template: str, **content: Any) -> str:
    environment = _environment()
    return environment.get_template(template).render(
        answers=answers,
        beside=beside,
        captions=captions,
        checks=checks,
        method=method,
        profiles=profiles,
        patches=patches,
        scripts=scripts,
        wording=wording,
        units=units,
        script_hash=_script_hash(),
        **content,
    )


@cache
def _environment() -> Environment:
    """Jinja2, strict about names, which escapes all that is no markup of ours and shows user text on one line."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def lines(code: str) -> Markup:
        return Markup("\n").join(wording.printable(line) for line in code.splitlines())

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = lines
    environment.filters["drawing"] = Markup  # of `plots` alone, which escapes by itself
    return environment


@cache
def _script_hash() -> str:
    """Of the page's only script, for the policy that forbids all others."""
    script = _environment().get_template("copy.js").render()
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
