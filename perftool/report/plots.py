"""Plots as inline SVG: light, printable, and drawn by the page's own colours, without a library or a script.

Positions along x are percentages of the width, so that a plot fits a phone and its text keeps its size; curves lie in
a stretched frame of FRAME x FRAME units. Axis labels stand outside of the plot's box, in margins that the style sheet
leaves. All text is escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log, log10
from typing import Literal

FRAME = 1000
TICK_HEIGHT_PX = 38  # below a plot: the labels of its ticks, and of the axis
LANE_PX = 22
ROW_PX = 22
GAP = 6  # times the usual distance between two points: more is a time in which there was nothing to draw

Mark = Literal["better", "worse", "open", "base"]
Label = Callable[[float], str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of numbers and how it maps to 0 to 100 per cent."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Per cent of the way from low to high; what lies outside is put at the end."""
        if self.high <= self.low:
            return 50.0
        inside = min(max(value, self.low), self.high)
        if self.log:
            return round(100 * log(inside / self.low) / log(self.high / self.low), 2)
        return round(100 * (inside - self.low) / (self.high - self.low), 2)

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers inside the range, at most about so many."""
        if self.log and self.high / self.low >= 8:
            steps = (1, 2, 5) if self.high / self.low < 10**2 else (1,)
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            found = [step * 10.0**decade for decade in decades for step in steps if self.holds(step * 10.0**decade)]
            return found[:: ceil(len(found) / (most + 1))] if found else []
        size = _round_step((self.high - self.low) / most)
        return [tick * size for tick in range(ceil(self.low / size - 1e-9), floor(self.high / size + 1e-9) + 1)]


def axis_over(values: Iterable[float], *, log: bool = False, zero: bool = False, pad: float = 0.05) -> Axis:
    """An axis that holds these values, with some room on both sides; `zero`: it begins at 0."""
    known = list(values) or [1.0]
    low, high = min(known), max(known)
    if log:
        ratio = max((high / low) ** pad, 1.02)
        return Axis(low / ratio, high * ratio, log=True)
    room = pad * ((high - low) or abs(high) or 1.0)
    return Axis(0.0 if zero else low - room, high + room)


def _round_step(size: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    if size <= 0:
        return 1.0
    power = 10.0 ** floor(log10(size))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= size * 0.999)


# ------------------------------------------------------------------------------------------------------ the elements


def element(name: str, *children: str, **attributes: object) -> str:
    """One element. Attributes are escaped, children are markup; `class_` and `text_anchor` lose and gain what Python's
    names forbid."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(content: str, x: object, y: object, class_: str = "tick", anchor: str = "start") -> str:
    """A line of text; the content is escaped."""
    return element("text", escape(content), x=x, y=y, class_=class_, text_anchor=anchor)


def _line(x1: object, y1: object, x2: object, y2: object, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _dot(x: float, y: object, class_: str, radius: float = 4.5) -> str:
    return element("circle", cx=_percent(x), cy=y, r=radius, class_=class_)


def _percent(position: float) -> str:
    return f"{position:g}%"


def _drawing(name: str, described: str, height_px: float, *children: str, class_: str = "plot") -> str:
    """A whole plot. Its name and description are what a screen reader says."""
    about = [element("title", escape(name) or " ")] + ([element("desc", escape(described))] if described else [])
    return element("svg", *about, *children, class_=class_, role="img", width="100%", height=f"{height_px:g}")


def _stretched(height_px: float, *paths: str) -> str:
    """Paths in FRAME x FRAME units, over the whole width."""
    box = f"0 0 {FRAME} {FRAME}"
    return element("svg", *paths, viewBox=box, preserveAspectRatio="none", width="100%", height=f"{height_px:g}")


def _path(points: Sequence[Point], class_: str, *, closed: bool = False) -> str:
    """Points in per cent of the frame."""
    scaled = [f"{x * FRAME / 100:.0f} {y * FRAME / 100:.0f}" for x, y in points]
    return element("path", d=f"M{'L'.join(scaled)}{'Z' if closed else ''}", class_=class_)


def _grid(height_px: float, x: Axis, y: Axis, x_label: Label, y_label: Label, x_name: str) -> list[str]:
    """Horizontal lines with labels to their left, and ticks below."""
    drawn = []
    for value in y.ticks(4):
        at = round(height_px * (100 - y.at(value)) / 100, 1)
        drawn += [_line(0, at, "100%", at, "grid"), text(y_label(value), -8, at + 4, anchor="end")]
    drawn.append(_line(0, height_px, "100%", height_px, "axis"))
    for value in x.ticks(4):
        drawn += [
            _line(_percent(x.at(value)), height_px, _percent(x.at(value)), height_px + 4, "axis"),
            text(x_label(value), _percent(x.at(value)), height_px + 17, anchor="middle"),
        ]
    drawn.append(text(x_name, "100%", height_px + 34, "name", "end"))
    return drawn


# --------------------------------------------------------------------------------------------------------- intervals


def interval(axis: Axis, value: float, low: float | None, high: float | None, mark: Mark, name: str) -> str:
    """One row of an interval plot: the value, its interval, and the line of the baseline at 1. An end that lies beyond
    the axis has no cap."""
    middle = ROW_PX / 2
    drawn = [_line(_percent(axis.at(1)), 0, _percent(axis.at(1)), "100%", "one")]
    if low is not None and high is not None:
        drawn.append(_line(_percent(axis.at(low)), middle, _percent(axis.at(high)), middle, f"span {mark}"))
        drawn += [
            _line(_percent(axis.at(end)), middle - 4, _percent(axis.at(end)), middle + 4, f"span {mark}")
            for end in (low, high)
            if axis.holds(end)
        ]
    drawn.append(_dot(axis.at(value), middle, f"dot {mark}"))
    return _drawing(name, "", ROW_PX, *drawn, class_="row")


def interval_axis(axis: Axis, label: Label, name: str) -> str:
    """The head of an interval plot: its ticks, whose labels keep inside of the column."""
    drawn = [
        text(label(value), _percent(axis.at(value)), 12, anchor=_anchor(axis.at(value))) for value in axis.ticks(3)
    ]
    return _drawing(name, "", 16, *drawn, class_="row")


def _anchor(position: float) -> str:
    return "start" if position < 8 else "end" if position > 92 else "middle"


def ratio_axis(values: Sequence[float], ends: Sequence[float]) -> Axis:
    """A logarithmic axis of ratios with 1 on it. Very long intervals are cut, so that the values stay apart."""
    low, high = min([1.0, *values]), max([1.0, *values])
    room = max((high / low) ** 0.6, 1.08)
    low, high = max(low / room, min([low, *ends])), min(high * room, max([high, *ends]))
    return axis_over([low, high], log=True, pad=0.04)


# ----------------------------------------------------------------------------------------------------- time and shape


@dataclass(frozen=True)
class Band:
    """One series over time, thinned out: in each bin the smallest, the middle and the largest value."""

    name: str
    class_: str
    at: Sequence[float]
    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Lane:
    """When something happened and how long it took: ticks in a lane below a plot, dots within it."""

    name: str
    at: Sequence[float]
    values: Sequence[float]


def timeline(
    name: str,
    described: str,
    bands: Sequence[Band],
    lanes: Sequence[Lane],
    x_label: Label,
    y_label: Label,
    x_name: str,
    height_px: float = 220,
    *,
    zero: bool = True,
) -> str:
    """Series over time as a line of middles in a band of extremes; lanes of events below."""
    everything = [value for band in bands for value in (*band.low, *band.high)]
    x = axis_over([at for band in bands for at in band.at] + [at for lane in lanes for at in lane.at], pad=0.01)
    uneven = bool(everything) and max(everything) > 6 * min(everything) > 0
    y = axis_over(everything, log=uneven, zero=zero and not uneven)
    drawn = _grid(height_px, x, y, x_label, y_label, x_name)
    for band in bands:
        paths = [path for piece in _pieces(band) for path in _band(piece, x, y)]
        drawn.append(_stretched(height_px, *paths))
    for number, lane in enumerate(lanes):
        top = height_px + TICK_HEIGHT_PX + 6 + number * LANE_PX
        drawn.append(_line(0, top + 9, "100%", top + 9, "grid"))
        # Of several that fall on the same place, the highest.
        places = {round(x.at(at), 1): value for value, at in sorted(zip(lane.values, lane.at, strict=True))}
        drawn += [_line(_percent(at), top + 3, _percent(at), top + 15, "event") for at in places]
        drawn += [
            _dot(at, round(height_px * (100 - y.at(value)) / 100, 1), "event", radius=2.5)
            for at, value in places.items()
        ]
        drawn.append(text(lane.name, 0, top, "lane"))
    return _drawing(name, described, height_px + TICK_HEIGHT_PX + (12 if lanes else 0) + LANE_PX * len(lanes), *drawn)


def _pieces(band: Band) -> list[Band]:
    """A band without bridges over times in which others were measured: cut where a gap is far longer than usual."""
    gaps = [after - before for before, after in pairwise(band.at)]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    cuts = [0, *(number for number, gap in enumerate(gaps, 1) if gap > GAP * usual), len(band.at)]
    return [
        Band(band.name, band.class_, *(values[a:b] for values in (band.at, band.low, band.middle, band.high)))
        for a, b in pairwise(cuts)
    ]


def _band(band: Band, x: Axis, y: Axis) -> tuple[str, str]:
    """The area between the extremes, and the line of the middles."""
    places = [x.at(at) for at in band.at]
    upper, lower, line = (
        [(place, 100 - y.at(value)) for place, value in zip(places, values, strict=True)]
        for values in (band.high, band.low, band.middle)
    )
    if len(line) == 1:  # a point needs some width to be seen
        [(place, middle)] = line
        line = [(place - 0.2, middle), (place + 0.2, middle)]
    area = _path([*upper, *reversed(lower)], f"area {band.class_}", closed=True)
    return area, _path(line, f"line {band.class_}")


@dataclass(frozen=True)
class Shape:
    """A distribution as heights of equally wide bins, with values to mark."""

    name: str
    class_: str
    heights: Sequence[float]  # each a share of all values
    marks: Sequence[tuple[str, float]] = ()


def histogram(
    name: str,
    described: str,
    shapes: Sequence[Shape],
    x: Axis,
    x_label: Label,
    y_label: Label,
    x_name: str,
    height_px: float = 180,
) -> str:
    """Distributions over the same bins, one over the other."""
    y = axis_over([height for shape in shapes for height in shape.heights], zero=True)
    drawn = _grid(height_px, x, y, x_label, y_label, x_name)
    for shape in shapes:
        count = len(shape.heights)
        edges = [100 * index / count for index in range(count + 1)]
        outline: list[Point] = [(0.0, 100.0)]
        for (left, right), height in zip(pairwise(edges), shape.heights, strict=True):
            outline += [(left, 100 - y.at(height)), (right, 100 - y.at(height))]
        outline.append((100.0, 100.0))
        drawn.append(_stretched(height_px, _path(outline, f"shape {shape.class_}", closed=True)))
    smallest = min((value for shape in shapes for _, value in shape.marks), default=0.0)
    for number, shape in enumerate(shapes):
        for label, value in shape.marks:
            if x.holds(value):
                at, top = _percent(x.at(value)), 10 + 15 * number
                # The smallest to the left and the others to the right, where there is room, so that they stay apart.
                anchor = "end" if x.at(value) > 75 or (value == smallest and x.at(value) > 25) else "start"
                drawn.append(_line(at, top - 8, at, height_px, f"mark {shape.class_}"))
                drawn.append(text(f"\u2002{label}\u2002", at, top, f"label {shape.class_}", anchor))
    return _drawing(name, described, height_px + TICK_HEIGHT_PX, *drawn)


# ----------------------------------------------------------------------------------------------------------- relations


@dataclass(frozen=True)
class Spot:
    """One point of a scatter plot or curve."""

    x: float
    y: float
    mark: Mark
    label: str = ""
    low: float | None = None
    high: float | None = None


def scatter(
    name: str,
    described: str,
    spots: Sequence[Spot],
    x_label: Label,
    y_label: Label,
    x_name: str,
    *,
    curve: bool = False,
    log_x: bool = False,
    height_px: float = 220,
) -> str:
    """Points with short labels; joined by a line where they are a curve."""
    x = axis_over([spot.x for spot in spots], log=log_x, pad=0.08)
    ends = [end for spot in spots for end in (spot.low, spot.high) if end is not None]
    y = axis_over([*(spot.y for spot in spots), *ends], pad=0.15)
    drawn = _grid(height_px, x, y, x_label, y_label, x_name)
    if curve:
        line = [(x.at(spot.x), 100 - y.at(spot.y)) for spot in spots]
        drawn.append(_stretched(height_px, _path(line, "line first")))
    for spot in sorted(spots, key=lambda one: one.mark == "better"):  # the front lies on top
        across, down = x.at(spot.x), round(height_px * (100 - y.at(spot.y)) / 100, 1)
        if spot.low is not None and spot.high is not None:
            upper, lower = (round(height_px * (100 - y.at(end)) / 100, 1) for end in (spot.high, spot.low))
            drawn.append(_line(_percent(across), upper, _percent(across), lower, f"span {spot.mark}"))
        drawn.append(_dot(across, down, f"dot {spot.mark}"))
        if spot.label:
            anchor = "end" if across > 90 else "start"
            drawn.append(text(f"\u2002{spot.label}\u2002", _percent(across), down - 6, "label", anchor))
    return _drawing(name, described, height_px + TICK_HEIGHT_PX, *drawn)


def stacked(name: str, described: str, parts: Sequence[float], height_px: float = 30) -> str:
    """Parts of a whole side by side, shaded s0, s1, ... as their swatches are."""
    total = sum(parts) or 1.0
    drawn, left = [], 0.0
    for number, part in enumerate(parts):
        width = 100 * part / total
        drawn.append(
            element(
                "rect",
                x=_percent(round(left, 2)),
                y=0,
                width=_percent(round(width, 2)),
                height=f"{height_px:g}",
                class_=f"part s{number % 8}",
            )
        )
        left += width
    return _drawing(name, described, height_px, *drawn, class_="row stack")


def swatch(number: int) -> str:
    """The shade of a part, for the table beside it."""
    square = element("rect", width=11, height=11, class_=f"part s{number % 8}")
    return element("svg", square, class_="swatch", width=11, height=11, aria_hidden="true")


def bar(name: str, share: float, mark: Mark) -> str:
    """A part of a whole, as a bar in its row."""
    full = element("rect", x=0, y=7, width="100%", height=8, class_="rail")
    part = element("rect", x=0, y=7, width=_percent(round(100 * min(share, 1.0), 2)), height=8, class_=f"bar {mark}")
    return _drawing(name, "", ROW_PX, full, part, class_="row")


def key(name: str, class_: str) -> str:
    """The name of a series beside its shade."""
    square = element("rect", width=11, height=11, class_=f"shape {class_}")
    shade = element("svg", square, class_="swatch", width=11, height=11, aria_hidden="true")
    return element("span", shade, escape(name), class_="key")
