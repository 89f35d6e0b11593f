"""How fit a machine is for measuring now. Paired measurement survives noise, but it takes longer to be sure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from perftool import units
from perftool.records import (
    DEVICE_HEAT,
    HARDWARE_SLOWDOWN,
    POWER_BRAKE,
    SAVING_GOVERNORS,
    DeviceFitness,
    Fitness,
    FitnessRating,
)

# (noisy from, unfit from)
BUSY_CORES_PER_CORE = (0.05, 0.5)
LOAD_PER_CORE = (0.25, 1.0)
STEAL_SHARE = (0.01, 0.10)
PRESSURE_SHARE = (0.05, 0.30)
DEVICE_BUSY_SHARE = (0.05, 0.5)
# Nothing of ours has run yet: a chip that is so hot now is close to slowing down under a training.
HOT_C = 85.0
NEAR_SLOWDOWN_C = 5.0
UNNAMED_CORES = 0.05  # so much of others' work may go unnamed

Reason = tuple[Literal["noisy", "unfit"], str]


def rate(fitness: Fitness) -> FitnessRating:
    """The rating, with what stands against a better one and what would help, the worst first."""
    found = [*_cores(fitness), *_memory(fitness), *_clock(fitness)]
    if fitness.device is not None:
        found += [*_device(fitness.device), *_device_clock(fitness.device)]
    unfit = [reason for word, reason in found if word == "unfit"]
    noisy = [reason for word, reason in found if word == "noisy"]
    return FitnessRating(rating="unfit" if unfit else "noisy" if noisy else "fit", reasons=[*unfit, *noisy])


def _graded(value: float | None, limits: tuple[float, float], reason: str) -> Iterator[Reason]:
    if value is not None and value >= limits[0]:
        yield ("unfit" if value >= limits[1] else "noisy"), reason


def _cores(fitness: Fitness) -> Iterator[Reason]:
    """Others on the cores, or on what lies below them."""
    named_cores = sum(process.cores for process in fitness.busy_processes)
    # A session of an older perftool knows the busiest ones alone.
    others_cores = named_cores if fitness.others_cores is None else fitness.others_cores
    names = ", ".join(f"{process.name} (process {process.pid})" for process in fitness.busy_processes)
    if others_cores - named_cores >= UNNAMED_CORES:
        names = f"{names} and others" if names else "other programs"
    yield from _graded(
        others_cores / fitness.cores,
        BUSY_CORES_PER_CORE,
        f"other work takes {units.decimal(others_cores)} of {units.counted(fitness.cores, 'core')}: "
        f"end {names}, or wait for it",
    )
    if fitness.load_average_1min is not None:
        host_cores = fitness.host_cores or fitness.cores
        yield from _graded(
            fitness.load_average_1min / host_cores,
            LOAD_PER_CORE,
            f"other work ran within the last minute (load {units.decimal(fitness.load_average_1min)} on "
            f"{units.counted(host_cores, 'core')}): wait a minute",
        )
    yield from _graded(
        fitness.steal_share,
        STEAL_SHARE,
        f"the host gives {units.share(fitness.steal_share)} of this machine's core time to others (steal): "
        "use a dedicated one",
    )
    yield from _graded(
        fitness.pressure_share,
        PRESSURE_SHARE,
        f"processes wait for a core {units.share(fitness.pressure_share)} of the time: run fewer at a time",
    )
    if fitness.throttled_periods:
        yield "unfit", "a cgroup's CPU quota stops this process now and then: raise it, or give whole cores"


def _memory(fitness: Fitness) -> Iterator[Reason]:
    if fitness.swapped_bytes:
        yield "unfit", f"memory is being swapped ({units.size(fitness.swapped_bytes)} just now): free some memory"
    elif fitness.swap_used_bytes:
        yield "noisy", f"{units.size(fitness.swap_used_bytes)} are swapped out: free some memory"


def _clock(fitness: Fitness) -> Iterator[Reason]:
    if fitness.heat_slowdowns:
        yield "unfit", "heat slowed the CPU down just now: let it cool, or mend its cooling"
    elif fitness.cpu_temperature_c is not None and fitness.cpu_temperature_c >= HOT_C:
        yield "noisy", f"the CPU is at {units.temperature(fitness.cpu_temperature_c)}: let it cool"
    if fitness.governor in SAVING_GOVERNORS:
        yield (
            "noisy",
            f"the clock follows the load (governor {fitness.governor}): "
            "set it with `cpupower frequency-set -g performance`",
        )


def _device(device: DeviceFitness) -> Iterator[Reason]:
    """Others on the GPU. How busy it is tells most; processes alone may be idle, or hidden from a container."""
    busy = list(
        _graded(
            device.busy_share,
            DEVICE_BUSY_SHARE,
            f"other work keeps the GPU busy {units.share(device.busy_share)} of the time: end what `nvidia-smi` lists, "
            "or wait for it",
        )
    )
    yield from busy
    if device.processes and not busy:
        hold = "holds" if device.processes == 1 else "hold"
        others = units.counted(device.processes, "other process", "other processes")
        yield "noisy", f"{others} {hold} the GPU and may use it at any time: end what `nvidia-smi` lists"


def _device_clock(device: DeviceFitness) -> Iterator[Reason]:
    held = device.held_down_by or []
    if DEVICE_HEAT in held:
        yield "unfit", "heat holds the GPU's clock down: let it cool, or mend its cooling"
    elif device.temperature_c is not None and device.temperature_c >= _hot_c(device):
        yield "noisy", f"the GPU is at {units.temperature(device.temperature_c)}: let it cool"
    if POWER_BRAKE in held:
        yield "unfit", "a power brake holds the GPU's clock down: mend its power supply"
    elif HARDWARE_SLOWDOWN in held and DEVICE_HEAT not in held:
        yield "unfit", "the hardware holds the GPU's clock down: look at its power supply and its cooling"
    elif held and DEVICE_HEAT not in held:
        yield "noisy", "its power limit holds the GPU's clock down: raise it with `nvidia-smi -pl`, or wait"


def _hot_c(device: DeviceFitness) -> float:
    return HOT_C if device.slowdown_c is None else device.slowdown_c - NEAR_SLOWDOWN_C
