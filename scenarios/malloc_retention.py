"""Have glibc keep freed tensor memory for the next step instead of giving it back to the kernel.

What it changes: `mallopt(M_MMAP_MAX, 0)` and `mallopt(M_TRIM_THRESHOLD, -1)`: large tensors come from the
    heap, which is never trimmed. By default each step maps its activations and gradients anew, and the kernel
    clears every page of them.
When it helps: training on a CPU with tensors of megabytes: the page faults can take a third of the step.
When it hurts: the process keeps the memory of its largest moment, and the heap can fragment.
Source: https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import FAULT_CHURN, STEP, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("off", "on")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
PROOF_BYTES = 64 * 2**20  # glibc maps blocks of 32 MiB and more by themselves, whatever it has learnt
OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "on" and not context.machine.libc.startswith("glibc"):
        return "the C library is not glibc, whose allocator this sets"
    preloaded = context.machine.environment.get("LD_PRELOAD", "")
    other = next((name for name in OTHER_ALLOCATORS if name in preloaded), None)
    if value == "on" and other:
        return f"LD_PRELOAD puts {other} in place of glibc's allocator, which this sets"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, process=(*plan.process, retain))


def retain() -> None:
    """Set the allocator of this process; forked children inherit it."""
    import ctypes

    from perftool.plan import SettingError

    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1)):
        raise SettingError("glibc refused the setting; MALLOC_* variables of the environment may stand against it")


def proof(training: Live, value: str) -> Proving:
    """Where a large block comes from, by glibc's own account, and the page faults of a few steps."""
    import resource

    import torch

    yield STEP
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        yield STEP
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 3
    before_block = heap_and_mapped_bytes()
    block = torch.empty(PROOF_BYTES, dtype=torch.uint8)
    # Modulo the 32 bits of the older function's counters.
    heap, mapped = ((now - then) % 2**32 for now, then in zip(heap_and_mapped_bytes(), before_block, strict=True))
    del block
    # Roughly: other threads and the garbage collector take and give at the same time.
    from_heap, from_mapping = (PROOF_BYTES // 2 <= grown < 2 * PROOF_BYTES for grown in (heap, mapped))
    place = "the kept heap" if from_heap else "a mapping of its own" if from_mapping else "an allocator not glibc's"
    return Engaged(
        ok=from_heap == (value == "on"),
        evidence=f"a 64 MiB tensor comes from {place}; {faults:.0f} page faults per step",
    )


def heap_and_mapped_bytes() -> tuple[int, int]:
    """Bytes in use on glibc's heaps, and in blocks that it has mapped by themselves.

    Source: mallinfo2(3), or mallinfo(3) before glibc 2.33.
    """
    import ctypes

    libc = ctypes.CDLL("libc.so.6")
    name, number = ("mallinfo2", ctypes.c_size_t) if hasattr(libc, "mallinfo2") else ("mallinfo", ctypes.c_int)
    information = type("Information", (ctypes.Structure,), {"_fields_": [(field, number) for field in FIELDS]})
    function = getattr(libc, name)
    function.restype = information
    told = function()
    return int(told.uordblks), int(told.hblkhd)


def code(value: str, _: Context) -> Code:
    return Code(imports="import ctypes", setup=_SETUP) if value == "on" else Code()


_SETUP = f"""\
libc = ctypes.CDLL("libc.so.6")  # or start with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592
libc.mallopt({M_MMAP_MAX}, 0)  # M_MMAP_MAX: no mappings of single blocks
libc.mallopt({M_TRIM_THRESHOLD}, -1)  # M_TRIM_THRESHOLD: never give the top of the heap back"""


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
    typical_gain=1.5,
)
