"""What this machine can do at best, measured: matrix products by dtype and precision mode, and copies.

The ceilings are those of the process that measures them: its threads, its cores, its device.
Source: sysfs-devices-system-cpu in the kernel's ABI documentation, for the size of the last-level cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perftool.probes import cgroups
from perftool.probes.clock import step_clock
from perftool.probes.memory import free_host_bytes
from perftool.probes.storages import Uncountable
from perftool.workload import where

if TYPE_CHECKING:
    from perftool.records import Limits
    from perftool.training import Training

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DTYPES = ("float32", "bfloat16", "float16")
CONVOLUTION_MODES = {"tf32": "high", "bf16": "medium"}  # all else is full precision
ROWS = {"cpu": (128, 4096), "cuda": (1024, 8192)}  # of the smallest matrices, and the largest
GROW_BELOW_NS = 20e6  # a product of twice the side takes eight times as long
REPEATS = 5
REPEAT_WITHIN_NS = 60e6  # all calls at one size, unless one alone takes longer
SHORT_CALLS_NS = 20e6  # of short calls so many more
IN_A_ROW = {
    "cpu": 1,
    "cuda": 20,
}  # calls timed together: a device that has to wait for each one's launch is not at work
LARGE_COPY_BYTES = {"cpu": (64 * 2**20, 512 * 2**20), "cuda": (256 * 2**20, 2**30)}  # least and most of a buffer
SMALL_COPY_BYTES = 2**20  # where the size of the cache is not known
MEMORY_SHARE = 8  # a buffer takes no more than this part of what is free

Fields = dict[str, Any]
"""Of a record, for a process that may have none."""


def limits(training: Training) -> Limits:
    """The work of a step of this training, beside what its process can do at best. See `count_work` for what is left
    changed; takes one to two seconds on a CPU."""
    from msgspec import convert, to_builtins

    from perftool.probes.work import count_work
    from perftool.records import Limits

    work, reason = None, None
    try:
        work = to_builtins(count_work(training))
    except (Exception, SystemExit) as error:
        reason = uncounted(error)
    return convert({**limits_beside(work, training.device), "reason": reason}, Limits)


def limits_beside(work: Fields | None, device: torch.device) -> Fields:
    """The fields of Limits but for a reason. work: the fields of a StepWork, where it is known."""
    return {
        "type": "limits",
        "work": work,
        "ceilings": measure_ceilings(device, [*DTYPES, *(work["flops_by_dtype"] if work else ())]),
        "cache_bytes": cache_bytes(device),
        "precision": precision_mode(),
        "convolution_precision": convolution_mode(device),
    }


def uncounted(error: BaseException) -> str:
    """Why there is no work of a step."""
    return f"the work of a step could not be counted: {error if isinstance(error, Uncountable) else where(error)}"


def measure_ceilings(device: torch.device, dtypes: Iterable[str] = DTYPES) -> list[Fields]:
    """The best products per dtype, float32 in each precision mode that means something on the device, and the best
    copies of a size beyond the last-level cache and of one within it: the fields of a Ceiling each.

    About a second on a CPU. The number of threads is the process's; precision mode and random state stay as they are.
    """
    ceilings = []
    in_force = precision_mode()
    for dtype in dict.fromkeys(dtypes):
        for mode in precision_modes(device, in_force) if dtype == "float32" else (None,):
            with _precision(mode):
                ceilings.append(_best_product(device, dtype, mode))
    ceilings += [_best_copy(device, buffer_bytes) for buffer_bytes in _copy_sizes(device)]
    return [one for one in ceilings if one is not None]


def precision_mode() -> str | None:
    """The mode of float32 matmuls; None where it was set by backend, which torch then refuses to sum up."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def convolution_mode(device: torch.device) -> str | None:
    """The mode of float32 convolutions and recurrent layers, in the words for matmuls; None where the two differ.

    On a GPU cuDNN takes TF32 for them unless told otherwise, whatever the mode of matmuls; without cuDNN they are done
    by matmuls.
    """
    backend: Any = torch.backends.cudnn if device.type == "cuda" else torch.backends.mkldnn
    if device.type == "cuda" and not torch.backends.cudnn.enabled:
        return precision_mode()
    parts: list[Any] = [getattr(backend, name, None) for name in ("conv", "rnn")]
    set_to = {part.fp32_precision for part in parts if hasattr(part, "fp32_precision")}
    if not set_to:  # an older torch, where there is but one switch, and none for a CPU
        return "high" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "highest"
    modes = {CONVOLUTION_MODES.get(one, "highest") for one in set_to}
    return modes.pop() if len(modes) == 1 else None


def precision_modes(device: torch.device, in_force: str | None = None) -> list[str]:
    """Modes that may differ on the device, and the one in force: on a GPU `medium` is `high`, and on a CPU `high` has
    not been seen to do anything."""
    return list(dict.fromkeys(["highest", "high" if device.type == "cuda" else "medium", in_force or "highest"]))


def cache_bytes(device: torch.device, caches: Path = CACHES) -> int | None:
    """Size of the last-level cache; None where the system does not tell."""
    if device.type == "cuda":
        size_bytes = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
        return None if size_bytes is None else int(size_bytes)
    found = {}
    for folder in caches.glob("index*"):
        level, kind, size = ((cgroups.read_words(folder / name) or [""])[0] for name in ("level", "type", "size"))
        if level.isdigit() and kind in ("Data", "Unified") and size[:-1].isdigit() and size[-1:] in ("K", "M"):
            found[int(level)] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    return found[max(found)] if found else None


@contextmanager
def _precision(mode: str | None) -> Iterator[None]:
    """Run float32 matmuls in this mode, and put everything back as it was; None changes nothing."""
    if mode is None:
        yield
        return
    before = precision_mode()
    # The attributes of newer versions of torch: what was never set, or set by backend, is so again afterwards.
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    set_before = [(one, one.fp32_precision) for one in backends if hasattr(one, "fp32_precision")]
    try:
        torch.set_float32_matmul_precision(mode)
        yield
    finally:
        torch.set_float32_matmul_precision(before or "highest")
        for backend, precision in set_before:
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def _best_product(device: torch.device, dtype: str, mode: str | None) -> Fields | None:
    """None where the device does not multiply this dtype."""
    rows, most_rows = ROWS[device.type]
    best_rate, best_rows = 0.0, rows
    number_type = getattr(torch, dtype, None)
    if not isinstance(number_type, torch.dtype):
        return None
    try:
        while True:
            time_ns = _product_ns(device, number_type, rows)
            rate = 2 * rows**3 / time_ns * 1e9
            if rate > best_rate:
                best_rate, best_rows = rate, rows
            if time_ns > GROW_BELOW_NS or 2 * rows > most_rows:
                break
            rows *= 2
    except RuntimeError:  # there is no such kernel, or no memory for a larger one
        if not best_rate:
            return None
    return {
        "kind": "matmul",
        "dtype": dtype,
        "precision": mode,
        "rows": best_rows,
        "flops_per_second": best_rate,
    }


def _product_ns(device: torch.device, dtype: torch.dtype, rows: int) -> float:
    # Random, since a GPU draws less power, and clocks higher, on zeros.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(rows, rows, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty(rows, rows, dtype=dtype, device=device)
    with torch.no_grad():
        return _best_ns(device, lambda: torch.mm(left, right, out=out))


def _best_copy(device: torch.device, buffer_bytes: int) -> Fields:
    source = torch.ones(buffer_bytes // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    time_ns = _best_ns(device, lambda: target.copy_(source))
    return {
        "kind": "copy",
        "dtype": "float32",
        "buffer_bytes": buffer_bytes,
        "bytes_per_second": 2 * buffer_bytes / time_ns * 1e9,  # read and written
    }


def _copy_sizes(device: torch.device) -> list[int]:
    """Of a buffer: two of the first take four times the last-level cache, two of the second a quarter of it."""
    last_level_bytes = cache_bytes(device)
    least, most = LARGE_COPY_BYTES[device.type]
    large = min(max(least, 2 * (last_level_bytes or 0)), most, _free_bytes(device) // MEMORY_SHARE)
    small = last_level_bytes // 8 if last_level_bytes else SMALL_COPY_BYTES
    return [max(4, size_bytes // 4 * 4) for size_bytes in (large, min(small, large))]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def _best_ns(device: torch.device, call: Callable[[], object]) -> float:
    """The fastest of several calls, more of them where they are short; at least 1 ns."""
    clock, in_a_row = step_clock(device), IN_A_ROW[device.type]
    times_ns: list[int] = []
    # The first call pays for what is not there yet: pages, kernels, packed forms. It counts for when the rest stops.
    while sum(times_ns) < (REPEAT_WITHIN_NS if len(times_ns) <= REPEATS else SHORT_CALLS_NS):
        clock.start()
        for _ in range(in_a_row):
            call()
        clock.mark()
        _, (time_ns,) = clock.finish()
        times_ns.append(max(in_a_row, time_ns))
    return min(times_ns) / in_a_row
