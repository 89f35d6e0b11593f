"""What TensorBoard gets of a traced session: the trace in words that its profiler plugin knows, and event files.

The plugin is torch-tb-profiler 0.4.3, the last one. It knows the categories that torch wrote until 2022 and ignores the
others, so that a trace of today shows no data loading, no CUDA runtime, and no operation that launched a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from perftool import units
from perftool.analysis.traces import OPTIMIZER_MARK, loses_kernels
from perftool.records import WAIT, Block, Session, Summary, TraceFacts
from perftool.temporary import temporary_folder

LOADER = "enumerate(DataLoader)#"  # how torch names a DataLoader's next batch, with .__next__ at its end
PLUGIN_WAIT = f"{LOADER}{WAIT}.__next__"
_CATEGORIES = {
    "cuda_runtime": "Runtime",
    "cuda_driver": "Runtime",  # what compiled code launches its kernels with
    # It would take those called ProfilerStep# for further steps: torch repeats the marks of the host on the device.
    "gpu_user_annotation": "device mark",
}
_LINKED = ("Runtime", "kernel", "gpu_memcpy", "gpu_memset")  # to operations, by "External id"
_NO_OPERATION = 0


def available() -> bool:
    """Whether event files can be written here."""
    return find_spec("tensorboard") is not None


def for_plugin(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A Chrome trace of torch.profiler with the categories and names that torch-tb-profiler 0.4.3 counts.

    Waiting for data, whatever the batches come from, becomes the plugin's DataLoader time; a DataLoader's own mark
    within it stays what it is to the plugin, and is not counted twice, since the plugin merges what overlaps. The
    optimizer's marks become operations, and calls of the CUDA runtime and driver its Runtime. Other marks, which
    cover whole phases, stay what the plugin ignores: Python between operations is not their execution.
    Source: `profiler/trace.py` and `profiler/event_parser.py` of that release.
    """
    return {**trace, "traceEvents": [_for_plugin(event) for event in trace["traceEvents"]]}


def _for_plugin(event: Mapping[str, Any]) -> Mapping[str, Any]:
    if event.get("ph") != "X":
        return event
    category, name = event.get("cat", ""), event.get("name", "")
    if category == "user_annotation" and name == WAIT:
        return {**event, "cat": "cpu_op", "name": PLUGIN_WAIT}
    if category == "user_annotation" and name.startswith((LOADER, OPTIMIZER_MARK)):
        return {**event, "cat": "cpu_op"}
    category = _CATEGORIES.get(category, category)
    event = {**event, "cat": category}  # the plugin reads no trace in which an event has none
    if category in _LINKED:
        event["args"] = {"External id": _NO_OPERATION, **event.get("args", {})}
    return event


def event_files(session: Session, summary: Summary, facts: TraceFacts) -> dict[str, bytes]:
    """Event files by name: step times, samples per second and memory, machine and settings, and HParams.

    Needs the package tensorboard: see `available`. The times are those of the steps that were not traced.
    """
    from torch.utils.tensorboard import SummaryWriter

    with temporary_folder() as folder:
        with SummaryWriter(str(folder)) as writer:
            for block in session.blocks:
                _add_block(writer, block)
            for name, value in _metrics(summary, facts).items():
                writer.add_scalar(name, value, 0)
            for title, rows in _texts(session, summary).items():
                writer.add_text(title, _table(rows), 0)
            writer.add_hparams({**session.defaults}, _metrics(summary, facts, "hparam/"), run_name=".")
        files = sorted(folder.iterdir())
        # Without the name of this machine, which is of no use to anybody else.
        began = files[0].name.split(".")[3]
        return {f"events.out.tfevents.{began}.perftool.{index}": file.read_bytes() for index, file in enumerate(files)}


def _add_block(writer: Any, block: Block) -> None:
    """The steps of one block, and its samples per second, at their place in the launch."""
    first = block.round * block.steps
    for index, step_ns in enumerate(block.step_ns):
        writer.add_scalar("step/time (ms)", step_ns / 1e6, first + index)
    for index, wait_ns in enumerate(block.wait_ns):
        writer.add_scalar("step/data wait (ms)", wait_ns / 1e6, first + index)
    writer.add_scalar("step/samples per second", 1e9 * block.samples / block.wall_ns, first)


def _metrics(summary: Summary, facts: TraceFacts, prefix: str = "session/") -> dict[str, float]:
    """Figures of the whole session; those that are unknown are left out."""
    one = summary.baseline
    figures = {
        "samples per second": one.samples_per_second,
        "median step time (ms)": one.step_ns.p50 / 1e6 if one.step_ns and one.step_ns.p50 is not None else None,
        "peak host memory (MB)": _megabytes(one.peak_host_bytes),
        "peak device memory, allocated (MB)": _megabytes(one.peak_device_allocated_bytes),
        "peak device memory, reserved (MB)": _megabytes(one.peak_device_reserved_bytes),
        **_traced(facts),
    }
    return {f"{prefix}{name}": value for name, value in figures.items() if value is not None}


def _traced(facts: TraceFacts) -> dict[str, float]:
    """The share of each phase. On a GPU the host's time is not the device's."""
    if facts.device_busy is None:
        return {f"traced, {phase} (share)": share for phase, share in facts.shares.items()}
    figures = {f"traced, {phase} (share of the host's time)": share for phase, share in facts.shares.items()}
    if not loses_kernels(facts):
        of_device = {"busy": facts.device_busy, **facts.device_shares}
        figures |= {f"traced, {phase} (share of the device's time)": share for phase, share in of_device.items()}
    return figures


def _megabytes(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def _texts(session: Session, summary: Summary) -> dict[str, list[tuple[str, str]]]:
    machine = session.machine
    device = machine.device if machine.device_name is None else f"{machine.device}, {machine.device_name}"
    return {
        "machine": [
            ("CPU", f"{machine.cpu_model}, {units.counted(machine.usable_cores, 'core')}"),
            ("memory", units.size(machine.memory_bytes)),
            ("device", device),
            ("torch", machine.torch_version),
            ("Python", machine.python_version),
            ("perftool", machine.perftool_version),
        ],
        "settings": [("workload", summary.workload), *sorted(session.defaults.items())],
    }


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Markdown."""
    lines = [f"| {name} | {text.replace('|', '&#124;')} |" for name, text in rows]
    return "\n".join(["|  |  |", "| --- | --- |", *lines])
