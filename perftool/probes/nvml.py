"""What the driver tells of a CUDA device, asked without torch and without a context on it.

So whatever is found on the device belongs to others. Source: the NVML API reference. None: there is no driver, or it
does not tell this of this device.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from perftool.words import DEVICE_HEAT, HARDWARE_SLOWDOWN, POWER_BRAKE, POWER_LIMIT

if TYPE_CHECKING:
    from perftool.records import DeviceFitness

# nvml.h: what holds a clock down against its will. An idle device and a clock that somebody has set are none of them.
HELD_DOWN = {0x04: POWER_LIMIT, 0x08: HARDWARE_SLOWDOWN, 0x20: DEVICE_HEAT, 0x40: DEVICE_HEAT, 0x80: POWER_BRAKE}


def handle_of(device: str) -> Any:
    """NVML's handle of what torch calls "cuda" or "cuda:N", and of what it takes for "auto" where it has CUDA."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not (number or "0").isdigit():
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        return _visible(int(number or 0))
    except pynvml.NVMLError:
        return None


def handle_of_uuid(uuid: str) -> Any:
    """By what torch knows the device by, which no CUDA_VISIBLE_DEVICES renumbers."""
    try:
        import pynvml
    except ImportError:  # in the Python of a user's script
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def driver_version() -> str | None:
    """As text."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def used_bytes(handle: Any) -> int | None:
    """Memory of the whole device that is in use, contexts included."""
    memory = None if handle is None else _ask(("nvmlDeviceGetMemoryInfo",), handle)
    return None if memory is None else int(memory.used)


def used_by_device() -> dict[str, int]:
    """The same of all devices, by the name that torch gives each."""
    found: dict[str, int] = {}
    while (used := used_bytes(handle_of(f"cuda:{len(found)}"))) is not None:
        found[f"cuda:{len(found)}"] = used
    return found


def clock_reasons(handle: Any) -> int | None:
    """Why the clock is where it is, in the bits of nvml.h."""
    # The second name is that of older drivers and bindings.
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    return None if handle is None else _ask(names, handle)


def clock_mhz(handle: Any) -> int | None:
    """Of the streaming multiprocessors, just now."""
    if handle is None:
        return None
    import pynvml

    return _ask(("nvmlDeviceGetClockInfo",), handle, pynvml.NVML_CLOCK_SM)  # type: ignore[no-any-return]


def energy_mj(handle: Any) -> int | None:
    """That the device has taken since its driver was loaded; some tens of ms behind."""
    return None if handle is None else _ask(("nvmlDeviceGetTotalEnergyConsumption",), handle)


def read_fitness(handle: Any, reasons: int | None) -> DeviceFitness | None:
    """What the device does just now.

    reasons: of its clock, as `clock_reasons` gives them. A process is told by its number alone, and in a container that
    may be the host's, another one, or nothing at all: how busy the device is needs no number.
    """
    if handle is None:
        return None
    import pynvml

    from perftool.records import DeviceFitness

    use = _ask(("nvmlDeviceGetUtilizationRates",), handle)
    # Of each pair, older drivers or bindings have only the second.
    processes = _ask(("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2"), handle)
    temperature_c = _ask(("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), handle, pynvml.NVML_TEMPERATURE_GPU)
    slowdown_c = _ask(("nvmlDeviceGetTemperatureThreshold",), handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    return DeviceFitness(
        busy_share=None if use is None else use.gpu / 100,
        processes=None if processes is None else sum(one.pid != os.getpid() for one in processes),
        used_bytes=used_bytes(handle),
        held_down_by=None if reasons is None else held_down_by(reasons),
        temperature_c=temperature_c,
        slowdown_c=slowdown_c or None,
    )


def held_down_by(reasons: int) -> list[str]:
    """What holds the clock down, in words."""
    return list(dict.fromkeys(word for bit, word in HELD_DOWN.items() if reasons & bit))


def _visible(number: int) -> Any:
    """The device of this number among those that CUDA_VISIBLE_DEVICES leaves, which renumbers them for torch alone."""
    import pynvml

    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(index) for index in range(len(handles))] if visible is None else visible.split(",")
    entry = entries[number].strip() if number < len(entries) else ""
    if entry.isdigit():
        known = int(entry) < len(handles) and _numbered_alike(handles)
        return handles[int(entry)] if known else None
    if entry.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(entry)
    # The beginning of a UUID is enough.
    found = [one for one in handles if entry.startswith("GPU-") and pynvml.nvmlDeviceGetUUID(one).startswith(entry)]
    return found[0] if len(found) == 1 else None


def _numbered_alike(handles: list[Any]) -> bool:
    """Whether CUDA numbers the devices as NVML does, by their slots: else it puts the fastest first."""
    import pynvml

    by_slot = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return by_slot or len({pynvml.nvmlDeviceGetName(handle) for handle in handles}) == 1


def _ask(names: tuple[str, ...], *arguments: Any) -> Any:
    """The answer of the first of these functions that the binding and the driver have; None where none answers."""
    import pynvml

    for name in names:
        try:
            return getattr(pynvml, name)(*arguments)
        except (AttributeError, pynvml.NVMLError):
            continue
    return None
