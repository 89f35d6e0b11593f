"""The rating of a machine: each disturbance is named with a remedy, the worst decides, and quiet is fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.fitness import rate
from perftool.records import BusyProcess, Fitness

QUIET = Fitness(
    window_s=1.0,
    cores=4,
    load_average_1min=0.1,
    steal_share=0.0,
    pressure_share=0.001,
    throttled_periods=0,
    governor="performance",
    swap_used_bytes=0,
    swapped_bytes=0,
    busy_processes=[],
)
UNTOLD = Fitness(
    window_s=1.0,
    cores=1,
    load_average_1min=None,
    steal_share=None,
    pressure_share=None,
    throttled_periods=None,
    governor=None,
    swap_used_bytes=None,
    swapped_bytes=None,
    busy_processes=[],
)


def busy(cores: float) -> list[BusyProcess]:
    return [BusyProcess(pid=7, name="make", cores=cores)]


@pytest.mark.parametrize("fitness", [QUIET, UNTOLD])
def test_a_quiet_machine_is_fit_and_so_is_one_that_tells_nothing(fitness: Fitness) -> None:
    assert (rate(fitness).rating, rate(fitness).reasons) == ("fit", [])


@pytest.mark.parametrize(
    ("changes", "rating", "said"),
    [
        ({"busy_processes": busy(0.3)}, "noisy", "takes 0.3 of 4 cores: end make (process 7), or wait"),
        ({"busy_processes": busy(3.0)}, "unfit", "takes 3 of 4 cores"),
        ({"load_average_1min": 2.0}, "noisy", "ran within the last minute (load 2): wait a minute"),
        ({"load_average_1min": 5.0}, "unfit", "load 5"),
        ({"steal_share": 0.02}, "noisy", "2 % of this machine's core time to others (steal): use a dedicated one"),
        ({"steal_share": 0.3}, "unfit", "steal"),
        ({"pressure_share": 0.1}, "noisy", "wait for a core 10 % of the time: run fewer"),
        ({"pressure_share": 0.5}, "unfit", "wait for a core"),
        ({"throttled_periods": 1}, "unfit", "quota"),
        ({"swap_used_bytes": 10**9}, "noisy", "1 GB are swapped out: free some memory"),
        ({"swap_used_bytes": 10**9, "swapped_bytes": 4096}, "unfit", "being swapped (4.1 kB just now)"),
        ({"governor": "powersave"}, "noisy", "governor powersave"),
    ],
)
def test_each_disturbance(changes: dict[str, object], rating: str, said: str) -> None:
    rated = rate(replace(QUIET, **changes))
    assert rated.rating == rating
    assert len(rated.reasons) == 1
    assert said in rated.reasons[0]


def test_the_worst_comes_first_and_decides() -> None:
    rated = rate(replace(QUIET, governor="powersave", steal_share=0.5))
    assert rated.rating == "unfit"
    assert ["steal" in reason for reason in rated.reasons] == [True, False]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["steal_share", "pressure_share", "load_average_1min"]))
def test_more_disturbance_never_rates_better(one: float, other: float, name: str) -> None:
    order = ["fit", "noisy", "unfit"]
    less, more = (rate(replace(QUIET, **{name: share})).rating for share in sorted((one, other)))
    assert order.index(less) <= order.index(more)
