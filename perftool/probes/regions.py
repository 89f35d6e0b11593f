"""Compiled code, as a profile of torch shows it."""

from __future__ import annotations

from typing import Any

PREFIXES = ("Torch-Compiled Region", "CompiledFunction")


def regions_in(profiled: Any) -> list[str]:
    """The kinds of compiled region that ran while it was profiled."""
    names = {event.key for event in profiled.key_averages()}
    return [name for name in names if name.startswith(PREFIXES)]
