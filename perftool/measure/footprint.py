"""What a launch takes of the machine's memory, and how many may therefore live at a time."""

from __future__ import annotations

from dataclasses import dataclass

from perftool.measure.ledger import Ledger
from perftool.records import Machine
from perftool.units import size

SHARE_OF_MEMORY = 0.8  # that all live launches together may take, of the host's and of a device's
GROWTH = 1.5  # a launch may come to need this much more than the survey's first step did
DEVICE_GROWTH = 2.0  # a captured graph has a pool of its own beside the one of the steps before it
UNTOLD_BYTES = 2**30  # of the host's, where the system does not tell


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of one launch, at the end of its first steps.

    device_bytes: that the driver saw the device fill by, the process's context included. device_free_bytes: before.
    Both None on a CPU, and where the driver does not tell.
    """

    host_bytes: int
    device_bytes: int | None = None
    device_free_bytes: int | None = None

    def live_limit(self, machine: Machine) -> int:
        """Launches that fit at a time."""
        limits = [SHARE_OF_MEMORY * machine.memory_available_bytes / (GROWTH * self.host_bytes)]
        if self.device_bytes and self.device_free_bytes is not None:
            limits.append(SHARE_OF_MEMORY * self.device_free_bytes / (DEVICE_GROWTH * self.device_bytes))
        return int(min(limits))

    def larger(self, other: Footprint) -> Footprint:
        """What both fit into."""
        return Footprint(
            host_bytes=max(self.host_bytes, other.host_bytes),
            device_bytes=max(_known(self.device_bytes, other.device_bytes), default=None),
            device_free_bytes=min(_known(self.device_free_bytes, other.device_free_bytes), default=None),
        )


def launches_that_fit(footprint: Footprint, ledger: Ledger) -> int:
    """How many may live at a time. Warns where a pair of them hardly fits into the device's memory."""
    own_bytes, free_bytes = footprint.device_bytes, footprint.device_free_bytes
    if own_bytes and free_bytes is not None and 2 * own_bytes > free_bytes:
        ledger.warn(
            f"a launch takes {size(own_bytes)} of the GPU's memory, of which {size(free_bytes)} were free, so two "
            "hardly live beside each other; measure with a smaller batch, or end what else uses the GPU"
        )
    return footprint.live_limit(ledger.session.machine)


def footprint_of(
    host_bytes: int | None, machine: Machine, *, used_before_bytes: int | None, used_after_bytes: int | None
) -> Footprint:
    """From the device's memory in use before the launch and at the end of its first steps, as the driver tells it."""
    of_device: dict[str, int] = {}
    total_bytes = machine.device_memory_bytes
    if total_bytes is not None and used_before_bytes is not None and used_after_bytes is not None:
        of_device = {
            "device_bytes": max(0, used_after_bytes - used_before_bytes),
            "device_free_bytes": max(0, total_bytes - used_before_bytes),
        }
    return Footprint(host_bytes=host_bytes or UNTOLD_BYTES, **of_device)


def _known(*figures: int | None) -> list[int]:
    return [one for one in figures if one is not None]
