"""What TensorBoard's profiler plugin makes of our traces, asked of the plugin itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perftool import tensorboard
from perftool.analysis.recommend import conclude
from perftool.analysis.traces import facts_of
from perftool.measure.messages import LaunchSpec, Trace
from perftool.measure.rounds import generation
from perftool.measure.worker import Worker
from perftool.records import Block, TraceFacts
from tests import plugin_overview
from tests.measure.fakes import Script, make_lab, make_session
from tests.plugin_overview import step_shares as shares

WORKLOAD = Path(__file__).parent / "measure" / "workloads.py"
needs_extra = pytest.mark.skipif(not plugin_overview.available(), reason=f"{plugin_overview.EXTRA} is not installed")


def event(category: str, name: str, begin_us: float, end_us: float, **arguments: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0 if category in ("kernel", "gpu_memcpy", "gpu_user_annotation") else 100,
        "tid": 7 if category in ("kernel", "gpu_memcpy", "gpu_user_annotation") else 100,
        "ts": begin_us,
        "dur": end_us - begin_us,
        "args": arguments,
    }


def cuda_step(number: int, start_us: float) -> list[dict[str, Any]]:
    """A step of 100 us as torch writes it today: 40 us of data wait, a copy, a matrix product and its kernel."""
    first = 100 * number

    def at(category: str, name: str, begin_us: float, end_us: float, **arguments: Any) -> dict[str, Any]:
        return event(category, name, start_us + begin_us, start_us + end_us, **arguments)

    kernel = {"device": 0, "context": 1, "stream": 7, "grid": [1, 1, 1], "block": [64, 1, 1]}
    return [
        at("user_annotation", f"ProfilerStep#{number}", 0, 100, **{"External id": first}),
        at("user_annotation", "data wait", 0, 40, **{"External id": first + 1}),
        at("user_annotation", "enumerate(DataLoader)#_It.__next__", 5, 35, **{"External id": first + 2}),
        at("user_annotation", "copy to device", 40, 45, **{"External id": first + 3}),
        at("cuda_runtime", "cudaMemcpyAsync", 41, 44, correlation=first + 1, **{"External id": first + 3}),
        at("gpu_memcpy", "Memcpy HtoD", 44, 48, correlation=first + 1, **kernel, **{"External id": first + 3}),
        at("user_annotation", "forward", 50, 60, **{"External id": first + 4}),
        at("cpu_op", "aten::mm", 51, 59, **{"External id": first + 5}),
        at("cuda_runtime", "cudaLaunchKernel", 53, 57, correlation=first + 2, **{"External id": first + 5}),
        at("kernel", "sgemm", 60, 80, correlation=first + 2, **kernel, **{"External id": first + 5}),
        at("cuda_driver", "cuLaunchKernel", 85, 87, correlation=first + 3),
        at("kernel", "triton_fused", 87, 92, correlation=first + 3, **kernel),
        at("gpu_user_annotation", f"ProfilerStep#{number}", 44, 92, **{"External id": first}),
    ]


CUDA_TRACE: dict[str, Any] = {
    "schemaVersion": 1,
    "deviceProperties": [{"id": 0, "name": "a GPU", "totalGlobalMem": 2**34, "computeMajor": 8, "numSms": 10}],
    "traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 100, "tid": 0, "ts": 0, "args": {"name": "python"}},
        *cuda_step(1, 0),
        *cuda_step(2, 100),
    ],
}


def test_only_categories_and_names_are_changed() -> None:
    written = tensorboard.for_plugin(CUDA_TRACE)
    assert {**written, "traceEvents": []} == {**CUDA_TRACE, "traceEvents": []}
    timed = [[(one["ts"], one.get("dur")) for one in trace["traceEvents"]] for trace in (CUDA_TRACE, written)]
    assert timed[0] == timed[1]
    changed = {
        (old["cat"], old["name"], new["cat"], new["name"])
        for old, new in zip(CUDA_TRACE["traceEvents"], written["traceEvents"], strict=True)
        if (old.get("cat"), old["name"]) != (new.get("cat"), new["name"])
    }
    assert changed == {
        ("user_annotation", "data wait", "cpu_op", "enumerate(DataLoader)#data wait.__next__"),
        ("user_annotation", "enumerate(DataLoader)#_It.__next__", "cpu_op", "enumerate(DataLoader)#_It.__next__"),
        ("cuda_runtime", "cudaMemcpyAsync", "Runtime", "cudaMemcpyAsync"),
        ("cuda_runtime", "cudaLaunchKernel", "Runtime", "cudaLaunchKernel"),
        ("cuda_driver", "cuLaunchKernel", "Runtime", "cuLaunchKernel"),
        ("gpu_user_annotation", "ProfilerStep#1", "device mark", "ProfilerStep#1"),
        ("gpu_user_annotation", "ProfilerStep#2", "device mark", "ProfilerStep#2"),
    }


def test_the_optimizers_marks_become_operations_and_no_event_lacks_a_category() -> None:
    events: list[Mapping[str, Any]] = [
        event("user_annotation", "Optimizer.step#Adam.step", 0, 1),
        {"ph": "X", "name": "bare", "ts": 0, "dur": 1},
        {"ph": "i", "name": "Record Window End", "ts": 1},
    ]
    optimizer, bare, instant = tensorboard.for_plugin({"traceEvents": events})["traceEvents"]
    assert optimizer == {**events[0], "cat": "cpu_op"}
    assert bare == {**events[1], "cat": ""}
    assert instant == events[2]


def traced(path: Path, **settings: str) -> dict[str, Any]:
    """A real trace of a few steps on this process' CPU."""
    spec = LaunchSpec(
        launch=0,
        reference=f"{WORKLOAD}:rows",
        scenario_files=[],
        settings=settings,
        device="cpu",
        seed=0,
        phases_named=True,
    )
    worker = Worker(spec)
    worker.start()
    worker.trace(Trace(drop=1, calls=5, path=str(path)))
    trace: dict[str, Any] = json.loads(path.read_text())
    return trace


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, TraceFacts]]:
    """The plugin's word on several traces, and ours."""
    folder = tmp_path_factory.mktemp("runs")
    traces = {
        "loader": traced(folder / "loader.json"),
        "gathered": traced(folder / "gathered.json", batch_gather="on"),
        "cuda": CUDA_TRACE,
    }
    written = {name: tensorboard.for_plugin(trace) for name, trace in traces.items()}
    written |= {f"{name} as torch wrote it": traces[name] for name in ("loader", "cuda")}
    for name, trace in written.items():
        (folder / name).mkdir()
        (folder / name / "trace.pt.trace.json").write_text(json.dumps(trace))
    return plugin_overview.asked(folder), {name: facts_of(trace) for name, trace in traces.items()}


@needs_extra
@pytest.mark.process
@pytest.mark.parametrize("run", ["loader", "gathered"])
def test_the_plugin_sees_the_data_wait_that_we_see(
    run: str, told: tuple[dict[str, Any], dict[str, TraceFacts]]
) -> None:
    overview, facts = told[0][run], told[1][run]
    ours = 100 * facts.shares["data wait"]
    assert ours > 0
    assert shares(overview)["DataLoader"] == pytest.approx(ours, abs=0.02)  # it rounds to two decimals
    assert len(overview["steps"]["rows"]) == facts.steps == 5


@needs_extra
@pytest.mark.process
def test_the_plugin_sees_the_cuda_runtime_and_who_launched_a_kernel(
    told: tuple[dict[str, Any], dict[str, TraceFacts]],
) -> None:
    overview = told[0]["cuda"]
    assert len(overview["steps"]["rows"]) == 2
    assert shares(overview) == pytest.approx(
        {"Kernel": 25, "Memcpy": 4, "Memset": 0, "Runtime": 9, "DataLoader": 40, "CPU Exec": 4, "Other": 18}
    )
    [product] = [one for one in overview["operations"] if one["name"] == "aten::mm"]
    assert product["device_total_duration"] == 40
    assert "Automatic Mixed Precision" in overview["recommendations"]


@needs_extra
@pytest.mark.process
def test_as_torch_writes_it_the_plugin_sees_neither(told: tuple[dict[str, Any], dict[str, TraceFacts]]) -> None:
    loader, cuda = (told[0][f"{name} as torch wrote it"] for name in ("loader", "cuda"))
    assert shares(loader)["DataLoader"] == 0
    assert (shares(cuda)["DataLoader"], shares(cuda)["Runtime"]) == (0, 0)


def test_on_a_gpu_figures_say_whose_time_it_is() -> None:
    lab, _ = make_lab(Script(), make_session())
    generation(lab, "trace", [], budget_s=1.0, rounds=3)
    session = lab.session
    facts = TraceFacts(
        steps=5,
        calls=5,
        events=10,
        step_ns=2e7,
        shares={"copy to device": 0.7},
        device_shares={"forward": 0.3},
        device_busy=0.9,
    )
    traced = {name for name in tensorboard._metrics(conclude(session), facts) if "traced" in name}
    on_host = "session/traced, copy to device (share of the host's time)"
    assert traced == {
        on_host,
        "session/traced, forward (share of the device's time)",
        "session/traced, busy (share of the device's time)",
    }
    lost = replace(facts, device_shares={}, device_busy=0.0)
    assert {name for name in tensorboard._metrics(conclude(session), lost) if "traced" in name} == {on_host}


@needs_extra
def test_event_files_have_figures_text_and_hparams(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begun = replace(make_session(), command="trace", defaults={"amp": "off|bf16", "threads": "1"})
    lab, _ = make_lab(Script(), begun)
    generation(lab, "trace", [], budget_s=1.0, rounds=3)
    session = lab.session
    facts = TraceFacts(steps=5, calls=5, events=10, step_ns=2e7, shares={"data wait": 0.25})
    for name, content in tensorboard.event_files(session, conclude(session), facts).items():
        (tmp_path / name).write_bytes(content)
    seen = EventAccumulator(str(tmp_path))
    seen.Reload()

    blocks: list[Block] = session.blocks
    times_ms = seen.Scalars("step/time (ms)")
    assert [one.value for one in times_ms] == pytest.approx([10.0] * sum(block.steps for block in blocks))
    assert [one.step for one in times_ms] == list(range(len(times_ms)))
    assert seen.Scalars("session/peak host memory (MB)")[0].value == pytest.approx(100)
    assert seen.Scalars("hparam/traced, data wait (share)")[0].value == 0.25
    tags = seen.Tags()
    assert {"machine/text_summary", "settings/text_summary"} <= set(tags["tensors"])
    text = seen.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| amp | off&#124;bf16 |" in text
    [hparams] = [data for tag, data in seen.summary_metadata.items() if tag == "_hparams_/session_start_info"]
    assert b"threads" in hparams.plugin_data.content
