"""How many launches live at a time: as many as the host's and the device's memory hold."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perftool.measure.footprint import Footprint, footprint_of, launches_that_fit
from perftool.measure.ledger import Ledger
from tests.measure.fakes import MACHINE, make_session

GB = 10**9
ON_GPU = replace(MACHINE, device="cuda:0", device_memory_bytes=80 * GB, memory_available_bytes=1000 * GB)


def taken(before_gb: float | None, after_gb: float | None) -> Footprint:
    def of(gb: float | None) -> int | None:
        return None if gb is None else round(gb * GB)

    return footprint_of(GB, ON_GPU, used_before_bytes=of(before_gb), used_after_bytes=of(after_gb))


@pytest.mark.parametrize(
    ("before_gb", "after_gb", "fit"),
    [
        (0, 1, 32),  # 80 % of the device, and each may come to twice as much
        (0, 20, 1),
        (40, 41, 16),  # another one's are not free
        (0, None, 533),  # the driver does not tell: the host decides
        (None, 1, 533),
        (5, 5, 533),
    ],
)
def test_as_many_live_as_the_device_holds(before_gb: float | None, after_gb: float | None, fit: int) -> None:
    assert taken(before_gb, after_gb).live_limit(ON_GPU) == fit


def test_on_a_cpu_the_host_decides() -> None:
    one = footprint_of(None, MACHINE, used_before_bytes=None, used_after_bytes=None)
    assert one == Footprint(host_bytes=2**30)
    assert one.live_limit(replace(MACHINE, memory_available_bytes=15 * 2**30)) == 8


def test_two_sides_are_reckoned_with_the_larger_one() -> None:
    assert taken(0, 2).larger(taken(1, 5)) == taken(1, 5)
    assert Footprint(host_bytes=1).larger(Footprint(host_bytes=2)) == Footprint(host_bytes=2)


@pytest.mark.parametrize(("after_gb", "warns"), [(39, False), (41, True)])
def test_a_pair_that_hardly_fits_is_told(after_gb: float, warns: bool) -> None:
    ledger = Ledger(replace(make_session(), machine=ON_GPU), lambda _: None)
    launches_that_fit(taken(0, after_gb), ledger)
    assert len(ledger.session.warnings) == warns
    assert all("41 GB" in one and "80 GB were free" in one for one in ledger.session.warnings)
