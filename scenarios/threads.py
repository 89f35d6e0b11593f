"""Use another number of threads inside operations.

What it changes: `torch.set_num_threads`: how many cores one matmul or elementwise operation is split over.
When it helps: fewer for small models, whose operations are shorter than the handing out of work; the cores
    are then free for data loading. More where a container made torch see too few.
When it hurts: fewer for large matmuls; more than there are cores always.
Source: https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario
from perftool.words import BARE_STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan


def default(context: Context) -> str:
    return str(context.machine.torch_threads)


def values(context: Context) -> Sequence[str]:
    cores = context.machine.usable_cores
    if context.on_cuda:  # what is computed on the host is little, and each value costs its turn
        return [str(number) for number in sorted({1, context.machine.torch_threads})]
    powers = [2**exponent for exponent in range(cores.bit_length()) if 2**exponent <= cores]
    return [str(number) for number in sorted({*powers, cores, context.machine.torch_threads})]


def refusal(value: str, _: Context) -> str | None:
    if not value.isdecimal() or int(value) < 1:
        return f"it takes a number of threads of at least 1, not '{value}'"
    return None


def discouraged(value: str, context: Context) -> str | None:
    cores = context.machine.usable_cores
    return f"there are only {cores} cores" if int(value) > cores and value != default(context) else None


def apply(plan: Plan, value: str) -> Plan:
    def prepare() -> None:
        import torch

        torch.set_num_threads(int(value))

    return replace(plan, process=(*plan.process, prepare))


def proof(training: Live, value: str) -> Proving:
    """What torch says after a step."""
    yield BARE_STEP
    threads = present()
    return Engaged(ok=threads == value, evidence=f"torch uses {threads} threads")


def present() -> str:
    import torch

    return str(torch.get_num_threads())


def code(value: str, context: Context) -> Code:
    return Code() if value == default(context) else Code(setup=f"torch.set_num_threads({value})")


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    present=present,
    code=code,
    switchable=True,
    discouraged=discouraged,
    typical_gain=1.1,
)
