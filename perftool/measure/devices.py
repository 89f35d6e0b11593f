"""The device that a training runs on, by the name that the user gave it."""

from __future__ import annotations


class DeviceError(ValueError):
    """A device that is not there; the text says which are."""


def take_device(device: str) -> str:
    """Resolve the device, and make it the current one of this process where it is a GPU."""
    import torch

    resolved = resolve_device(device)
    if resolved.startswith("cuda"):
        torch.cuda.set_device(resolved)
    return resolved


def resolve_device(device: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:N" as "cpu" or "cuda:N". Raises DeviceError for one that is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise DeviceError(f"a device is auto, cpu, cuda or cuda:N, not '{device}'")
    if not count:
        raise DeviceError(f"device {device}: torch {torch.__version__} finds no CUDA device here; use cpu")
    if int(number or 0) >= count:
        raise DeviceError(f"device {device}: there are {count} CUDA devices, numbered from 0")
    return f"cuda:{number or 0}"
