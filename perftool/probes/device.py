"""Memory of a CUDA device, present and peak, each figure under its own name. On a CPU everything is None.

`allocated` are tensors, `reserved` is what torch's allocator holds, `nvml` is the whole device's use, contexts and
other processes included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from perftool.probes import nvml

if TYPE_CHECKING:
    import torch


class DevicePeaks(NamedTuple):
    allocated_bytes: int | None
    reserved_bytes: int | None


class DeviceUse(NamedTuple):
    allocated_bytes: int | None
    reserved_bytes: int | None
    nvml_bytes: int | None
    inactive_split_bytes: int | None  # free, but in pieces of blocks that are in use


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def drop_cache(device: torch.device) -> None:
    """Give back what the allocator holds without need: what the training does not take again is none of its own."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def reset_peaks(device: torch.device) -> None:
    """Start the peaks again at the present use."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def read_peaks(device: torch.device) -> DevicePeaks:
    """Peaks since the last reset. What a graph works on was allocated when it was captured, before it: only what is
    reserved has it.

    Source: torch.cuda.max_memory_reserved, and the allocator's state during replays, pytorch PR 94653.
    """
    if device.type != "cuda":
        return DevicePeaks(None, None)
    import torch

    return DevicePeaks(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))


def read_use(device: torch.device) -> DeviceUse:
    """Present use. Source: torch.cuda.memory_stats."""
    if device.type != "cuda":
        return DeviceUse(None, None, None, None)
    import torch

    split_bytes = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current")
    return DeviceUse(allocated_bytes(device), torch.cuda.memory_reserved(device), _nvml(device), split_bytes)


def allocated_bytes(device: torch.device) -> int | None:
    """What tensors take now. Without asking NVML, so that it may be read often."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.memory_allocated(device))


def available_bytes(device: torch.device) -> int | None:
    """What this process may hold on the device: what torch holds, and what is free. None on a CPU."""
    if device.type != "cuda":
        return None
    import torch

    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(free_bytes) + torch.cuda.memory_reserved(device)


def count_syncs(device: torch.device, act: Callable[[], object]) -> int | None:
    """How often `act` makes the host wait for the device, as torch tells. None on a CPU.

    Source: torch.cuda.set_sync_debug_mode, which knows most of torch's own operations that wait.
    """
    if device.type != "cuda":
        return None
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in told)


def allocator_retries(device: torch.device) -> int:
    """Times the allocator had to free its cache and ask again. Takes some 10 us on a GPU; flattened it is ten times as
    much."""
    if device.type != "cuda":
        return 0
    import torch

    return int(torch.cuda.memory_stats_as_nested_dict(device).get("num_alloc_retries", 0))


def is_throttled(device: torch.device) -> bool | None:
    """Whether heat or power holds the clock down just now. None on a CPU, and where NVML does not tell."""
    if device.type != "cuda":
        return None
    reasons = nvml.clock_reasons(_handle(device))
    return None if reasons is None else bool(nvml.held_down_by(reasons))


def clock_labels(device: torch.device) -> dict[str, Any]:
    """Of BlockLabels those of a device's clock, while it is at work; none on a CPU."""
    if device.type != "cuda":
        return {}
    handle = _handle(device)
    reasons = nvml.clock_reasons(handle)
    return {
        "device_clock_mhz": nvml.clock_mhz(handle),
        "device_held_down_by": [] if reasons is None else nvml.held_down_by(reasons),
    }


def energy_mj(device: torch.device) -> int | None:
    """A running total of what the device has taken. None on a CPU, and where NVML does not tell."""
    return None if device.type != "cuda" else nvml.energy_mj(_handle(device))


class Meter:
    """What a device does from now on, which waits for what came before, until it is read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        synchronise(device)
        self._energy_mj, self._began_ns = energy_mj(device), monotonic_ns()

    def read(self) -> dict[str, Any]:
        """Of a Stretch the time, the energy and the clock, once the device has done all that it was given."""
        of_clock = clock_labels(self._device)  # before it has nothing left to do
        synchronise(self._device)
        wall_ns, after_mj = monotonic_ns() - self._began_ns, energy_mj(self._device)
        taken_mj = None if self._energy_mj is None or after_mj is None else after_mj - self._energy_mj
        return {"wall_ns": wall_ns, "energy_mj": taken_mj, **of_clock}


def _nvml(device: torch.device) -> int | None:
    return nvml.used_bytes(_handle(device))


@cache
def _handle(device: torch.device) -> Any:
    import torch

    return nvml.handle_of_uuid(str(torch.cuda.get_device_properties(device).uuid))
