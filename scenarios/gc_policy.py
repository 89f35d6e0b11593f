"""Take what lives for the whole training out of Python's garbage collector.

What it changes: after the first steps `gc.collect()` and `gc.freeze()`: the collector no longer looks through the
    objects that exist by then.
When it helps: jitter in processes with very many objects (a compiler in memory, a large framework, an index in
    Python): a full collection then takes a tenth of a second and more, and with many ranks all wait for the one
    that collects.
When it hurts: cycles among frozen objects are never freed. A plain loop of small steps collects so rarely that
    nothing is gained, so it is tried only where there are many objects.
Source: https://docs.python.org/3/library/gc.html#gc.freeze
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.plan import WARM_CALLS
from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import COLLECTIONS, STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("default", "freeze")
MANY_OBJECTS = 300_000  # torch alone has about 170,000, with its compiler 370,000


def default(_: Context) -> str:
    return "default"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, _: Context) -> str | None:
    return refuse_unlisted(value, VALUES)


def discouraged(value: str, context: Context) -> str | None:
    objects = context.workload.python_objects
    if value == "default" or (objects is not None and objects >= MANY_OBJECTS):
        return None
    return "the process has too few Python objects for the pauses of the garbage collector to show"


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "default" else replace(plan, warmed_up=(*plan.warmed_up, freeze))


def freeze() -> None:
    """Put aside all that lives by now."""
    import gc

    gc.collect()
    gc.freeze()


def proof(training: Live, value: str) -> Proving:
    """How many objects the collector has put aside."""
    import gc

    for _ in range(WARM_CALLS):
        yield STEP
    frozen = gc.get_freeze_count()
    return Engaged(ok=bool(frozen) == (value == "freeze"), evidence=f"{frozen} objects are frozen")


def code(value: str, _: Context) -> Code:
    return Code(setup="import gc", warmed_up="gc.collect()\ngc.freeze()") if value == "freeze" else Code()


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={COLLECTIONS: ("freeze",)},
    discouraged=discouraged,
    typical_gain=1.01,
)
