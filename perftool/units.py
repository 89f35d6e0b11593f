"""The only place where a number becomes text. Three significant digits; unknown is a word, never a blank."""

from __future__ import annotations

from math import floor, log10

UNKNOWN = "unknown"

_TIMES_NS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    if number == 0:
        return "0"
    places = max(0, 2 - floor(log10(abs(number))))
    text = f"{number:.{places}f}"
    # Rounding may have carried into another place: 9.999 is 10.0, not 10.00.
    return f"{number:.{max(0, places - 1)}f}" if abs(float(text)) >= 10 ** (3 - places) and places else text


def _scaled(number: float | None, scales: tuple[tuple[float, str], ...]) -> str:
    if number is None:
        return UNKNOWN
    for scale, unit in scales:
        # 999.6 is shown in the next unit, where it is 1.00.
        if abs(number) >= scale * 0.9995:
            return f"{digits(number / scale)} {unit}".rstrip()
    return f"{digits(number / scales[-1][0])} {scales[-1][1]}".rstrip()


def duration(ns: float | None) -> str:
    """Nanoseconds: 226 µs, 14.1 ms, 3.20 s, 2 min 5 s."""
    if ns is not None and ns >= 59.95e9:
        minutes, seconds = divmod(round(ns / 1e9), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    return _scaled(ns, _TIMES_NS)


def size(count_bytes: float | None) -> str:
    """Bytes, decimal: 451 MB."""
    return _scaled(count_bytes, _BYTES)


def rate(samples_per_second: float | None) -> str:
    """Samples per second: 70.3 k samples/s."""
    return UNKNOWN if samples_per_second is None else f"{_scaled(samples_per_second, _COUNTS)} samples/s"


def count(number: float | None) -> str:
    """A plain number: 12.4 k."""
    return _scaled(number, _COUNTS)


def ratio(value: float | None) -> str:
    """1.34x."""
    return UNKNOWN if value is None else f"{digits(value)}x"


def ratio_interval(value: float | None, low: float | None, high: float | None) -> str:
    """1.34x (1.31 to 1.37)."""
    if value is None or low is None or high is None:
        return ratio(value)
    return f"{ratio(value)} ({digits(low)} to {digits(high)})"


def percent(fraction: float | None) -> str:
    """A change: 0.34 is +34.0 %, -0.004 is -0.4 %."""
    return UNKNOWN if fraction is None else f"{100 * fraction:+.1f} %"


def share(fraction: float | None) -> str:
    """A part of a whole: 0.343 is 34.3 %."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f} %"
