"""From sessions whose truth is scripted to the figures that everybody reads."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis import summary
from perftool.analysis.summary import all_decided, compare_all, summarise, variant_summary
from perftool.records import Comparison, Engaged, Settings
from perftool.report.wording import notes
from tests.measure.fakes import make_session
from tests.sessions import make_launch, make_limits, timed_session

FAST: Settings = {"amp": "bf16"}
SLOW: Settings = {"threads": "1"}


def test_what_was_scripted_is_told() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0), (SLOW, 20.0)], noise=0.002)
    told = summarise(session)
    fast, slow = told.variants
    assert (fast.settings, slow.settings) == (FAST, SLOW)
    assert fast.versus_baseline["throughput"].ratio == pytest.approx(2.0, rel=0.005)
    assert fast.versus_baseline["throughput"].verdict == "better"
    assert slow.versus_baseline["throughput"].verdict == "worse"
    assert fast.versus_baseline["step_p50"].ratio == pytest.approx(0.5, rel=0.005)
    assert fast.versus_baseline["throughput"].pairs == 40
    assert fast.data_wait_fraction == pytest.approx(0.1)
    assert told.baseline.samples_per_second == pytest.approx(1000, rel=0.1)
    assert told.measured_s == pytest.approx(sum(block.wall_ns for block in session.blocks) / 1e9)
    assert not told.baseline.versus_baseline


def test_the_baseline_carries_the_sessions_own_settings() -> None:
    session = timed_session([({"threads": "1"}, 10.0), (FAST, 5.0)])
    assert variant_summary(session, 0).settings == {"threads": "1"}


def test_quantiles_that_too_few_steps_tell_are_unknown() -> None:
    few = variant_summary(timed_session([({}, 10.0)], generations=1, rounds=5), 0)
    assert few.step_ns is not None
    assert few.step_ns.p50 is not None
    assert (few.step_ns.p95, few.step_ns.p99) == (None, None)
    assert few.jitter is not None
    assert few.jitter.note == "not enough steps for p95 and p99"


def test_intervals_are_simultaneous() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0), (SLOW, 20.0)])
    alone = compare_all(session, [1])[1]["throughput"]
    both = compare_all(session, [1, 2])[1]["throughput"]
    assert alone.low is not None
    assert both.low is not None
    assert both.ratio == alone.ratio


def test_where_a_variant_was_confirmed_only_that_counts() -> None:
    session = timed_session([({}, 10.0), (FAST, 4.0)], stage="alone", noise=0.001)
    confirming = timed_session([({}, 10.0), (FAST, 5.0)], stage="confirm", noise=0.001)
    for launch in confirming.launches:
        session.launches.append(replace(launch, launch=launch.launch + 100, generation=launch.generation + 10))
    for block in confirming.blocks:
        session.blocks.append(replace(block, launch=block.launch + 100, round=block.round + 1000))
    told = variant_summary(session, 1)
    assert told.versus_baseline["throughput"].ratio == pytest.approx(2.0, rel=0.01)


def test_a_lost_variant_keeps_its_reason_and_is_not_compared() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)], generations=3)
    session.launches.append(make_launch(99, 1, 4, status="failed", reason="its process died by SIGSEGV"))
    told = variant_summary(session, 1)
    assert (told.status, told.reason) == ("failed", "its process died by SIGSEGV")
    assert not told.versus_baseline


def test_a_launch_lost_beside_enough_others_is_a_note() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)], generations=4)
    session.launches.append(make_launch(99, 1, 4, status="failed", reason="its process died by SIGSEGV"))
    told = variant_summary(session, 1)
    assert (told.status, told.reason) == ("measured", "1 of its 5 launches was lost: its process died by SIGSEGV")
    assert told.versus_baseline["throughput"].launches == 4
    assert ("amp=bf16", told.reason) in notes(summarise(session))


def test_settings_that_once_took_no_effect_are_not_measured_whatever_the_other_launches_say() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)], generations=4)
    nothing = Engaged(ok=False, evidence="it ran in float32")
    session.launches.append(make_launch(99, 1, 4, status="skipped", reason="no effect", engaged=nothing))
    told = variant_summary(session, 1)
    assert (told.status, told.versus_baseline) == ("skipped", {})


def test_on_a_gpu_what_the_host_waits_is_no_data_wait() -> None:
    session = timed_session([({}, 10.0)])
    on_gpu = replace(session, machine=replace(session.machine, device="cuda:0"))
    assert variant_summary(on_gpu, 0).data_wait_fraction is None


def test_each_set_of_stages_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counting(*arguments: Any, **named: Any) -> dict[int, dict[str, Comparison]]:
        asked.append(arguments[1:])
        return compare_all(*arguments, **named)

    monkeypatch.setattr(summary, "compare_all", counting)
    session = timed_session([({}, 10.0), (FAST, 5.0), (SLOW, 20.0)])
    told = summarise(session)
    assert asked == [([1, 2], {"measure"})]
    assert [one.versus_baseline for one in told.variants] == list(compare_all(session, [1, 2], ["measure"]).values())


def test_nothing_measured_is_not_a_result() -> None:
    session = make_session()
    told = variant_summary(session, 0)
    assert (told.status, told.samples_per_second, told.step_ns, told.jitter) == ("failed", None, None, None)
    assert summarise(session).measured_s == 0


def test_memory_and_start_up_are_the_worst_and_the_first() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)])
    session.launches[:] = [
        replace(one, start_up_ns=(9 if one.cold else 3) * 10**9, peak_host_bytes=10**8 + one.generation)
        if one.variant
        else one
        for one in session.launches
    ]
    told = variant_summary(session, 1)
    assert (told.cold_start_ns, told.warm_start_ns) == (9 * 10**9, 3 * 10**9)
    assert told.peak_host_bytes == 10**8 + 3
    # 7 s more than the baseline's 2 s, at 5 ms saved in each step
    assert told.break_even_steps == pytest.approx(7 / 0.005, rel=0.2)
    assert variant_summary(timed_session([({}, 10.0), (FAST, 5.0)]), 1).break_even_steps == 0


def test_decided_means_all_of_them() -> None:
    clear = timed_session([({}, 10.0), (FAST, 5.0), (SLOW, 20.0)])
    assert all_decided(clear, [1, 2])
    faint = timed_session([({}, 10.0), (FAST, 5.0), (SLOW, 9.8)], noise=0.05)
    assert not all_decided(faint, [1, 2])
    assert all_decided(make_session(), [])


def test_the_baseline_is_on_the_pareto_front_unless_a_variant_beats_it() -> None:
    slower = timed_session([({"amp": "off"}, 10.0), (SLOW, 20.0)], noise=0.001)
    assert summarise(slower).pareto == [{}]  # a megabyte less, and twice as fast
    faster = timed_session([({}, 10.0), (FAST, 5.0)], noise=0.001)
    assert summarise(faster).pareto == [{}, FAST]


def test_several_steps_per_call_have_no_times_of_single_steps_but_a_share_of_waiting() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)], noise=0.001)
    several = {launch.launch for launch in session.launches if launch.variant == 1}
    session.launches[:] = [replace(one, steps_per_call=2) if one.launch in several else one for one in session.launches]
    session.blocks[:] = [
        replace(one, step_ns=[], wait_ns=[], waited_ns=one.wall_ns // 4) if one.launch in several else one
        for one in session.blocks
    ]
    told = variant_summary(session, 1)
    assert (told.steps_per_call, told.step_ns, told.jitter) == (2, None, None)
    assert told.data_wait_fraction == pytest.approx(0.25, rel=0.001)
    assert told.versus_baseline["throughput"].ratio == pytest.approx(2.0, rel=0.005)
    assert "step_p50" not in told.versus_baseline
    assert variant_summary(session, 0).steps_per_call == 1


def test_the_distance_to_the_limit_is_of_the_baselines_median_step_or_of_its_mean_where_several_run_in_a_call() -> None:
    session = timed_session([({}, 10.0), (FAST, 5.0)])
    assert summarise(session).distance is None
    told = summarise(replace(session, limits=make_limits()))
    assert told.distance is not None
    assert told.baseline.step_ns is not None
    assert told.distance.step_ns == told.baseline.step_ns.p50
    several = replace(session, limits=make_limits(), blocks=[replace(one, step_ns=[]) for one in session.blocks])
    mean = summarise(several).distance
    own = [one for one in session.blocks if one.launch % 2 == 0]
    assert mean is not None
    assert mean.step_ns == pytest.approx(sum(one.wall_ns for one in own) / sum(one.steps for one in own))
    assert summarise(replace(make_session(), limits=make_limits())).distance is None
