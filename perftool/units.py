"""The only place where a number becomes text: three significant digits, decimal prefixes, None as "unknown".

A number that is NaN or infinite is unknown, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite

UNKNOWN = "unknown"

_SECOND_NS = 10**9
_TIMES_NS = ((1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s"))
_PREFIXES = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))
_FLOPS = ((1.0, "FLOP"), (1e3, "kFLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP"), (1e15, "PFLOP"))
_ENERGIES_UJ = ((1.0, "µJ"), (1e3, "mJ"), (1e6, "J"), (1e9, "kJ"))
_BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))


def duration(time_ns: float | None) -> str:
    """Nanoseconds as "226 µs", "14.1 ms", "3.2 s", "2 min 5 s" or "1 h 5 min"."""
    if time_ns is None or not isfinite(time_ns):
        return UNKNOWN
    sign, size_ns = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    if _rounded(size_ns) < 60 * _SECOND_NS:
        return f"{sign}{_scaled(size_ns, _TIMES_NS)}"
    if round(size_ns / _SECOND_NS) < 3600:
        return sign + _two_units(round(size_ns / _SECOND_NS), 60, "min", "s")
    return sign + _two_units(round(size_ns / _SECOND_NS / 60), 60, "h", "min")


def rate(per_second: float | None, unit: str = "sample") -> str:
    """Something per second as "70.3 k samples/s"."""
    if per_second is None or not isfinite(per_second):
        return UNKNOWN
    return f"{_scaled(per_second, _PREFIXES)} {unit}s/s"


def told_in(text: str, unit: str) -> str:
    """A text about samples, of what is counted: "samples/s" as it is for "sample", "steps/s" for "step"."""
    return text.replace("sample", unit).replace("Sample", unit.capitalize())


def size(size_bytes: float | None) -> str:
    """Bytes as "451 MB" or "1.2 GB"; the prefixes are decimal, 1 MB is a million bytes."""
    if size_bytes is None or not isfinite(size_bytes):
        return UNKNOWN
    return _scaled(size_bytes, _BYTES)


def bandwidth(bytes_per_second: float | None) -> str:
    """Bytes per second as "12.1 GB/s"."""
    text = size(bytes_per_second)
    return text if text == UNKNOWN else f"{text}/s"


def energy(millijoules: float | None) -> str:
    """Energy as "12.5 mJ" or "1.2 J"."""
    if millijoules is None or not isfinite(millijoules):
        return UNKNOWN
    return _scaled(1000 * millijoules, _ENERGIES_UJ)


def temperature(celsius: float | None) -> str:
    """A temperature as "45 °C"."""
    return UNKNOWN if celsius is None or not isfinite(celsius) else f"{round(celsius)} °C"


def flops(count: float | None) -> str:
    """Floating point operations as "1.88 GFLOP"."""
    if count is None or not isfinite(count):
        return UNKNOWN
    return _scaled(count, _FLOPS)


def flop_rate(flops_per_second: float | None) -> str:
    """Floating point operations per second as "180 GFLOP/s"."""
    text = flops(flops_per_second)
    return text if text == UNKNOWN else f"{text}/s"


def size_change(size_bytes: float | None, low: float | None, high: float | None, per: str = "step") -> str:
    """A change of size with its interval, all in the unit of the largest, as "+10.1 kB per step (9.8 to 10.4)"."""
    values = (size_bytes, low, high)
    known = [value for value in values if value is not None and isfinite(value)]
    if len(known) < len(values):
        return UNKNOWN
    largest = _rounded(max(map(abs, known)))
    factor, unit = next((one for one in reversed(_BYTES) if largest >= one[0]), _BYTES[0])
    exponent = int(f"{largest / factor:.2e}".partition("e")[2])
    change, *interval = (_fixed(value / factor, max(0, 2 - exponent)) for value in known)
    sign = "" if change.startswith("-") or change == "0" else "+"
    return f"{sign}{change} {unit} per {per} ({interval[0]} to {interval[1]})"


def bytes_of(text: str) -> int:
    """A size that somebody wrote, such as "800MB", "1.5 GB" or "2GiB", in bytes. Raises ValueError with the remedy."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text, flags=re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"'{text}' is no size; write 800MB or 1.5GB")
    power: int = "kmgt".find(found[2].lower()) + 1 if found[2] else 0
    size_bytes: float = float(found[1]) * (1024 if found[3] else 1000) ** power
    return round(size_bytes)


def ratio(value: float | None) -> str:
    """A ratio as "1.34x", its three digits always shown."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return f"{_digits(value)}x"


def ratio_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A ratio with its interval as "1.34x (1.31 to 1.37)"; the ratio alone where the interval is unknown."""
    if value is None or low is None or high is None or not (isfinite(low) and isfinite(high)):
        return ratio(value)
    return f"{ratio(value)} ({_digits(low)} to {_digits(high)})"


def times(value: float | None) -> str:
    """A round ratio, such as a tick of an axis, as "1x" or "1.2x"."""
    text = decimal(value)
    return text if text == UNKNOWN else f"{text}x"


def percent(fraction: float | None) -> str:
    """A relative difference as "+34 %" or "-0.4 %"; 0.34 is +34 %."""
    text = share(fraction)
    return text if fraction is None or text == UNKNOWN or text == "0 %" or fraction < 0 else f"+{text}"


def share(fraction: float | None) -> str:
    """A part of a whole as "4.2 %" or "34 %"; 0.34 is 34 %. One decimal below ten per cent, none from there on."""
    if fraction is None or not isfinite(fraction):
        return UNKNOWN
    rounded = round(100 * fraction, 1)
    text = f"{rounded:.1f}" if abs(rounded) < 10 else f"{100 * fraction:,.0f}"
    return f"{_stripped(text)} %" if rounded else "0 %"


def count(number: float | None) -> str:
    """A whole number as "1,234"."""
    if number is None or not isfinite(number):
        return UNKNOWN
    return f"{round(number):,}"


def amount(number: float | None) -> str:
    """A number that is only about known, as "845", "61.7 k" or "1.2 M"."""
    return UNKNOWN if number is None or not isfinite(number) else _scaled(number, _PREFIXES)


def counted(number: float | None, what: str, whats: str | None = None) -> str:
    """A number of things as "1 pair", "1,234 pairs", "2 launches"."""
    return f"{count(number)} {what if number == 1 else whats or what + 's'}"


def decimal(value: float | None) -> str:
    """A bare number, such as a loss, as "0.0312"."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return _stripped(_digits(value)) if value == 0 or abs(value) >= 1e-4 else f"{value:.2e}"


def _rounded(value: float) -> float:
    """To three significant digits."""
    return float(f"{value:.2e}")


def _digits(value: float) -> str:
    """Three significant digits without an exponent: "1.30", "0.435", "1,230"."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{_rounded(value):,.{min(max(0, 2 - exponent), 300)}f}"


def _fixed(value: float, decimals: int) -> str:
    """So many decimals, without trailing zeros and without the sign of a zero."""
    text = _stripped(f"{value:,.{min(decimals, 3)}f}")
    return "0" if text == "-0" else text


def _stripped(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    """In the largest unit that leaves at least one, after rounding: 999.7 µs are 1 ms."""
    size = abs(_rounded(value))
    factor, unit = next((one for one in reversed(units) if size >= one[0]), units[0])
    return f"{_stripped(_digits(value / factor))} {unit}".rstrip()


def _two_units(small: int, per_large: int, large_unit: str, small_unit: str) -> str:
    large, rest = divmod(small, per_large)
    return f"{large:,} {large_unit}" + (f" {rest} {small_unit}" if rest else "")
