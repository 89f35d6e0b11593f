"""The rating of a machine: each disturbance is named with a remedy, the worst decides, and quiet is fit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.fitness import rate
from perftool.records import (
    DEVICE_HEAT,
    HARDWARE_SLOWDOWN,
    POWER_BRAKE,
    POWER_LIMIT,
    BusyProcess,
    DeviceFitness,
    Fitness,
    from_json,
    to_json,
)

ADDED_IN_1_4 = {"host_cores", "others_cores", "cpu_temperature_c", "heat_slowdowns", "device"}
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
QUIET_DEVICE = DeviceFitness(
    busy_share=0.0, processes=0, used_bytes=500_000_000, held_down_by=[], temperature_c=40.0, slowdown_c=87.0
)
UNTOLD_DEVICE = DeviceFitness(
    busy_share=None, processes=None, used_bytes=None, held_down_by=None, temperature_c=None, slowdown_c=None
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


@pytest.mark.parametrize(
    "fitness",
    [QUIET, UNTOLD, replace(QUIET, device=QUIET_DEVICE), replace(UNTOLD, device=UNTOLD_DEVICE)],
)
def test_a_quiet_machine_is_fit_and_so_is_one_that_tells_nothing(fitness: Fitness) -> None:
    assert (rate(fitness).rating, rate(fitness).reasons) == ("fit", [])


@pytest.mark.parametrize(
    ("changes", "rating", "said"),
    [
        ({"busy_processes": busy(0.3)}, "noisy", "takes 0.3 of 4 cores: end make (process 7), or wait"),
        ({"busy_processes": busy(3.0)}, "unfit", "takes 3 of 4 cores"),
        ({"load_average_1min": 2.0}, "noisy", "ran within the last minute (load 2 on 4 cores): wait a minute"),
        ({"load_average_1min": 5.0}, "unfit", "load 5"),
        ({"steal_share": 0.02}, "noisy", "2 % of this machine's core time to others (steal): use a dedicated one"),
        ({"steal_share": 0.3}, "unfit", "steal"),
        ({"pressure_share": 0.1}, "noisy", "wait for a core 10 % of the time: run fewer"),
        ({"pressure_share": 0.5}, "unfit", "wait for a core"),
        ({"throttled_periods": 1}, "unfit", "quota"),
        ({"swap_used_bytes": 10**9}, "noisy", "1 GB are swapped out: free some memory"),
        ({"swap_used_bytes": 10**9, "swapped_bytes": 4096}, "unfit", "being swapped (4.1 kB just now)"),
        ({"governor": "powersave"}, "noisy", "governor powersave"),
        ({"others_cores": 0.3}, "noisy", "takes 0.3 of 4 cores: end other programs, or wait"),
        ({"others_cores": 0.5, "busy_processes": busy(0.3)}, "noisy", "end make (process 7) and others, or wait"),
        ({"others_cores": 0.3, "busy_processes": busy(0.29)}, "noisy", "end make (process 7), or wait"),
        ({"cpu_temperature_c": 91.3}, "noisy", "the CPU is at 91 °C: let it cool"),
        ({"heat_slowdowns": 2, "cpu_temperature_c": 99.0}, "unfit", "heat slowed the CPU down"),
    ],
)
def test_each_disturbance(changes: dict[str, object], rating: str, said: str) -> None:
    rated = rate(replace(QUIET, **changes))
    assert rated.rating == rating
    assert len(rated.reasons) == 1
    assert said in rated.reasons[0]


@pytest.mark.parametrize(
    ("changes", "rating", "said"),
    [
        ({"busy_share": 0.1}, "noisy", "keeps the GPU busy 10 % of the time: end what `nvidia-smi` lists"),
        ({"busy_share": 0.6, "processes": 2}, "unfit", "busy 60 %"),
        ({"processes": 1}, "noisy", "1 other process holds the GPU and may use it at any time: end"),
        ({"processes": 2, "busy_share": None}, "noisy", "2 other processes hold the GPU"),
        ({"temperature_c": 83.0}, "noisy", "the GPU is at 83 °C: let it cool"),
        ({"temperature_c": 86.0, "slowdown_c": None}, "noisy", "the GPU is at 86 °C"),
        ({"held_down_by": [DEVICE_HEAT, HARDWARE_SLOWDOWN], "temperature_c": 90.0}, "unfit", "mend its cooling"),
        ({"held_down_by": [HARDWARE_SLOWDOWN, POWER_BRAKE]}, "unfit", "mend its power supply"),
        ({"held_down_by": [HARDWARE_SLOWDOWN]}, "unfit", "look at its power supply and its cooling"),
        ({"held_down_by": [POWER_LIMIT]}, "noisy", "raise it with `nvidia-smi -pl`"),
    ],
)
def test_each_disturbance_of_a_gpu(changes: dict[str, object], rating: str, said: str) -> None:
    rated = rate(replace(QUIET, device=replace(QUIET_DEVICE, **changes)))
    assert rated.rating == rating
    assert len(rated.reasons) == 1
    assert said in rated.reasons[0]


def test_many_small_jobs_count_together_though_few_are_named() -> None:
    three = [BusyProcess(pid=pid, name="job", cores=1.0) for pid in range(3)]
    many = replace(QUIET, cores=64, host_cores=64, others_cores=40.0, load_average_1min=40.0, busy_processes=three)
    rated = rate(many)
    assert rated.rating == "unfit"
    assert "takes 40 of 64 cores" in rated.reasons[0]
    assert "load 40 on 64 cores" in rated.reasons[1]


def test_the_load_of_a_host_is_shared_by_all_its_cores() -> None:
    container = replace(QUIET, cores=2, host_cores=64, others_cores=0.0)
    assert rate(replace(container, load_average_1min=30.0)).rating == "noisy"
    assert rate(replace(container, load_average_1min=8.0)).rating == "fit"


def test_a_fitness_of_an_older_perftool_is_read_and_rated() -> None:
    document = to_json(replace(QUIET, busy_processes=busy(3.0))).decode()
    kept = {key: value for key, value in json.loads(document).items() if key not in ADDED_IN_1_4}
    old = from_json(json.dumps(kept), Fitness)
    assert (old.host_cores, old.others_cores, old.device) == (None, None, None)
    assert rate(old).rating == "unfit"


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
