"""What is asked of NVML, with a driver that is made up: its devices, what it tells, and what it does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from perftool.probes import device as device_probe
from perftool.probes import machine, nvml
from perftool.records import DEVICE_HEAT, HARDWARE_SLOWDOWN, POWER_BRAKE, POWER_LIMIT, DeviceFitness

A, B = "GPU-aaaa1111", "GPU-bbbb2222"
IDLE, HEAT, CAP = 0x01, 0x40, 0x04


class FakeError(Exception):
    pass


def raising(*_: object) -> None:
    raise FakeError("not here")


def driver(monkeypatch: pytest.MonkeyPatch, uuids: dict[str, str], **functions: Callable[..., object]) -> ModuleType:
    """A module `pynvml` whose driver has these devices, by UUID with their names, and answers these functions alone."""
    module: Any = ModuleType("pynvml")
    module.NVML_CLOCK_SM = 1
    module.NVMLError, module.NVML_TEMPERATURE_GPU, module.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = FakeError, 0, 1
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: len(uuids)
    module.nvmlDeviceGetHandleByIndex = lambda index: list(uuids)[index]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlDeviceGetUUID = lambda handle: handle
    module.nvmlDeviceGetName = lambda handle: uuids[handle]
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return module  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("device", "visible", "handle"),
    [
        ("cuda:0", None, A),
        ("cuda:1", None, B),
        ("cuda", None, A),
        ("auto", None, A),
        ("cuda:2", None, None),
        ("cuda:0", "1", B),
        ("cuda:1", "1, 0", A),
        ("cuda:0", "7", None),
        ("cuda:0", "-1", None),
        ("cuda:0", "", None),
        ("cuda:0", "GPU-bb", B),
        ("cuda:0", "GPU-", None),
        ("cuda:0", "MIG-cccc", "MIG-cccc"),
        ("cpu", None, None),
        ("cuda:x", None, None),
        ("tpu", None, None),
    ],
)
def test_a_device_is_found_by_the_number_that_torch_gives_it(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, handle: str | None
) -> None:
    driver(monkeypatch, {A: "H100", B: "H100"})
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.handle_of(device) == handle


def test_unequal_devices_are_told_apart_only_where_cuda_numbers_them_by_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, {A: "T4", B: "H100"})
    assert nvml.handle_of("cuda:0") is None
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert nvml.handle_of("cuda:0") == A


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, {}, nvmlInit=raising)
    assert nvml.handle_of("auto") is None
    assert machine.read_fitness(0.0, "auto").device is None


def test_what_a_device_does(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=-1), SimpleNamespace(pid=-2)]
    reasons = iter([CAP | HEAT | IDLE, HEAT | IDLE])  # the power limit was there for a moment only
    driver(
        monkeypatch,
        {A: "H100"},
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=40),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=5),
        nvmlDeviceGetComputeRunningProcesses=lambda _: processes,
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: next(reasons),
        nvmlDeviceGetTemperatureV=lambda _, sensor: {0: 71}[sensor],
        nvmlDeviceGetTemperatureThreshold=lambda _, threshold: {1: 87}[threshold],
    )
    assert machine.read_fitness(0.0, "cuda").device == DeviceFitness(
        busy_share=0.4, processes=2, used_bytes=5, held_down_by=[DEVICE_HEAT], temperature_c=71, slowdown_c=87
    )


def test_older_names_are_asked_where_the_newer_fail_or_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(
        monkeypatch,
        {A: "V100"},
        nvmlDeviceGetComputeRunningProcesses=raising,
        nvmlDeviceGetComputeRunningProcesses_v2=lambda _: [],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: IDLE,
        nvmlDeviceGetTemperature=lambda _, sensor: 30,
    )
    assert machine.read_fitness(0.0, "cuda:0").device == DeviceFitness(
        busy_share=None, processes=0, used_bytes=None, held_down_by=[], temperature_c=30, slowdown_c=None
    )


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0, []),
        (0x01 | 0x02 | 0x10 | 0x100, []),  # idle, set by somebody, in step with others, for a display
        (0x04, [POWER_LIMIT]),
        (0x08 | 0x80, [HARDWARE_SLOWDOWN, POWER_BRAKE]),
        (0x20 | 0x40, [DEVICE_HEAT]),
    ],
)
def test_what_holds_a_clock_down(reasons: int, words: list[str]) -> None:
    assert nvml.held_down_by(reasons) == words


@pytest.mark.parametrize(
    "name", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
)
def test_a_watched_block_is_throttled_by_the_newer_and_by_the_older_function(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torch

    monkeypatch.setattr(device_probe, "_handle", lambda _: A)
    for reasons, throttled in ((CAP, True), (IDLE, False)):
        driver(monkeypatch, {A: "H100"}, **{name: lambda _, reasons=reasons: reasons})
        assert device_probe.is_throttled(torch.device("cuda:0")) is throttled
    driver(monkeypatch, {A: "H100"}, **{name: raising})
    assert device_probe.is_throttled(torch.device("cuda:0")) is None
    monkeypatch.setattr(device_probe, "_handle", lambda _: None)
    assert device_probe.is_throttled(torch.device("cuda:0")) is None


def test_a_block_is_labelled_with_the_clock_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu = torch.device("cuda:0")
    monkeypatch.setattr(device_probe, "_handle", lambda _: A)
    driver(
        monkeypatch,
        {A: "H100"},
        nvmlDeviceGetClockInfo=lambda _, kind: {1: 1755}[kind],
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: HEAT | IDLE,
    )
    assert device_probe.clock_labels(gpu) == {"device_clock_mhz": 1755, "device_held_down_by": [DEVICE_HEAT]}
    driver(monkeypatch, {A: "H100"}, nvmlDeviceGetClockInfo=raising)
    assert device_probe.clock_labels(gpu) == {"device_clock_mhz": None, "device_held_down_by": []}
    assert device_probe.clock_labels(torch.device("cpu")) == {}


def test_a_device_is_found_by_what_torch_knows_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    module = driver(monkeypatch, {A: "H100"}, nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=5))
    handle = nvml.handle_of_uuid("1234")
    assert handle == "GPU-1234"
    assert nvml.used_bytes(handle) == 5
    module.nvmlDeviceGetHandleByUUID = raising  # type: ignore[attr-defined]
    assert nvml.handle_of_uuid("1234") is None
    assert nvml.used_bytes(None) is None


@pytest.mark.gpu
def test_a_gpu_tells_its_state_and_is_the_one_that_torch_means() -> None:
    import pynvml
    import torch

    device = machine.read_fitness(0.0, "cuda:0").device
    assert device is not None
    assert device.used_bytes is not None
    assert device.held_down_by is not None
    assert device.temperature_c is not None
    assert 0 < device.temperature_c < 110
    uuid = f"GPU-{torch.cuda.get_device_properties('cuda:0').uuid}"
    assert pynvml.nvmlDeviceGetUUID(nvml.handle_of("cuda:0")) == uuid
    assert device_probe.is_throttled(torch.device("cuda:0")) is not None
