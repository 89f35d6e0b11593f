"""Put tensors of megabytes into huge pages.

What it changes: `THP_MEM_ALLOC_ENABLE=1`: torch aligns large tensors on the CPU to two megabytes and asks the kernel
    for huge pages, so that a page fault brings 512 times as much.
When it helps: training on a CPU with tensors of megabytes that are allocated anew in each step.
When it hurts: memory is rounded up to whole huge pages, and finding them can stall where memory is fragmented.
    `malloc_retention` removes most of the same page faults.
Source: https://docs.kernel.org/admin-guide/mm/transhuge.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import FAULT_CHURN, Engaged

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("off", "on")
VARIABLE = "THP_MEM_ALLOC_ENABLE"
PROOF_BYTES = 64 * 2**20


def default(context: Context) -> str:
    return "on" if context.machine.environment.get(VARIABLE) == "1" else "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    mode = context.machine.huge_pages
    if value == "on" and mode not in ("always", "madvise"):
        told = f"has them set to '{mode}'" if mode else "does not offer them"
        return f"the kernel {told} (/sys/kernel/mm/transparent_hugepage/enabled)"
    return refuse_unlisted(value, VALUES)


def discouraged(value: str, context: Context) -> str | None:
    if value == "on" and context.on_cuda:
        return "it concerns tensors on the CPU, and the training runs on the GPU"
    return None


def environment(value: str) -> Mapping[str, str]:
    return {VARIABLE: "1" if value == "on" else "0"}


def apply(plan: Plan, value: str) -> Plan:
    return plan


def proof(training: Live, value: str) -> Engaged:
    """Whether the memory of a large tensor is marked for huge pages (`hg` in smaps, see proc(5))."""
    import torch

    block = torch.ones(PROOF_BYTES, dtype=torch.uint8)
    flags = mapping_flags(block.data_ptr())
    marked = "hg" in flags
    told = "is" if marked else "is not" if flags else "is, as far as the system tells, not"
    return Engaged(ok=marked == (value == "on"), evidence=f"a 64 MiB tensor {told} marked for huge pages")


def mapping_flags(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds the address; empty where it does not tell."""
    try:
        with open("/proc/self/smaps") as smaps:
            lines = smaps.read().splitlines()
    except OSError:
        return []
    inside = False
    for line in lines:
        first, *rest = line.split()
        if first.endswith(":"):
            if inside and first == "VmFlags:":
                return rest
        else:
            start, _, end = first.partition("-")
            inside = int(start, 16) <= address < int(end, 16)
    return []


def code(value: str, context: Context) -> Code:
    if value == default(context):
        return Code()
    number = environment(value)[VARIABLE]
    return Code(setup=f'import os\n\nos.environ["{VARIABLE}"] = "{number}"  # before the first tensor')


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={FAULT_CHURN: ("on",)},
    environment=environment,
    discouraged=discouraged,
    typical_gain=1.25,
)
