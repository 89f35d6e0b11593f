"""What perftool attaches to the user's objects: none of it is copied or saved with them, and none keeps one alive."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

CONFIGURED, MADE_AT, OWN_OPTIONS = "_perftool_configured", "_perftool_made_at", "_perftool_own_options"
"""Attributes of optimizers, since another one may get the identity of one that is gone."""


class Attached:
    """Something in the `__dict__` of a user's object. A copy of that, or what is saved of it, has None in its place."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class Call(Attached, functools.partial):  # type: ignore[type-arg]
    """What a module runs in place of its own call: a partial, which is called without a frame of its own."""

    __slots__ = ()


Known = Callable[[], Any]
"""Gives an object as long as it is there, and then None."""


def weakly(one: Any) -> Known:
    """A reference that does not keep an object alive, where its class allows one."""
    try:
        return weakref.ref(one)
    except TypeError:
        return lambda: one


def alive(references: Sequence[Known]) -> list[Any]:
    """The objects that are still there, in order."""
    return [one for reference in references if (one := reference()) is not None]
