"""The golden reports: `python -m tests.report.regenerate` writes them anew from what the renderers say now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from perftool.analysis.fitness import rate
from perftool.records import BusyProcess, DeviceFitness, Fitness, Rejected, ScenarioDescription
from perftool.report import html, markdown, terminal
from tests.measure.fakes import MACHINE
from tests.report.pages import Checked, scripted, two_sessions
from tests.sessions import (
    compared_summary,
    explained_summary,
    limited_summary,
    make_summary,
    profiled_summary,
    script_summary,
    tuned_summary,
    weighed_summary,
)

GOLDEN = Path(__file__).parent / "golden"

NOTHING_BETTER = make_summary(
    "tune",
    recommendation_status="nothing_better",
    rejected=[Rejected(settings={"threads": "1"}, reason="slower alone, 0.91x")],
)
DISTURBED = Fitness(
    window_s=1.0,
    cores=2,
    host_cores=2,
    others_cores=1.04,
    load_average_1min=1.9,
    steal_share=0.03,
    pressure_share=0.41,
    throttled_periods=0,
    governor="powersave",
    swap_used_bytes=0,
    swapped_bytes=0,
    busy_processes=[BusyProcess(pid=4242, name="cc1plus", cores=0.97)],
    cpu_temperature_c=61.0,
    heat_slowdowns=0,
    device=DeviceFitness(
        busy_share=0.4,
        processes=1,
        used_bytes=12_400_000_000,
        held_down_by=["power limit"],
        temperature_c=83,
        slowdown_c=87,
    ),
)
WITH_GPU = replace(
    MACHINE,
    matrix_units=["amx_bf16", "amx_int8"],
    device="cuda:0",
    device_name="NVIDIA H100",
    device_capability=[9, 0],
    device_memory_bytes=85_000_000_000,
    cuda_version="13.0",
    driver_version="580.65",
    environment={"OMP_NUM_THREADS": "2"},
)

AMP = ScenarioDescription(
    name="amp",
    summary="Compute the loss in reduced precision.",
    sections={"What it changes": "matmuls of the forward pass, and with them their backward, run in bfloat16."},
    changes="numerics",
    default="off",
    available=["off", "bf16"],
    refused={"fp16": "this CPU has no AMX-FP16, so float16 is emulated and many times slower; use bf16"},
    codes={"off": {}, "bf16": {"loss_context": 'torch.autocast("cpu", dtype=torch.bfloat16)'}},
)
PINNED = replace(
    AMP,
    name="pinned_memory",
    summary="Copy batches to the GPU without waiting.",
    changes="speed",
    available=["off"],
    refused={"on": "there is no accelerator to copy to"},
    codes={},
)


def first_screen(page: str) -> str:
    """What can be read on a page before its tables and plots."""
    return "\n".join(Checked(page[page.index("<header>") : page.index("</header>")] + "</header>").lines)


REPORTS: dict[str, Callable[[], str]] = {
    "tune.txt": lambda: terminal.render(tuned_summary()),
    "tune.md": lambda: markdown.render(tuned_summary()),
    "compare.txt": lambda: terminal.render(compared_summary()),
    "compare.md": lambda: markdown.render(compared_summary()),
    "profile.txt": lambda: terminal.render(profiled_summary()),
    "profile.md": lambda: markdown.render(profiled_summary()),
    "explained.txt": lambda: terminal.render(explained_summary()),
    "explained.md": lambda: markdown.render(explained_summary()),
    "limits.txt": lambda: terminal.render(limited_summary()),
    "limits.md": lambda: markdown.render(limited_summary()),
    "memory.txt": lambda: terminal.render(weighed_summary()),
    "memory.md": lambda: markdown.render(weighed_summary()),
    "nothing_better.txt": lambda: terminal.render(NOTHING_BETTER),
    "nothing_better.md": lambda: markdown.render(NOTHING_BETTER),
    "beside.txt": lambda: terminal.render_beside(two_sessions()),
    "beside.md": lambda: markdown.render_beside(two_sessions()),
    "script.txt": lambda: terminal.render(script_summary()),
    "script.md": lambda: markdown.render(script_summary()),
    "script_first_screen.txt": lambda: first_screen(html.render(scripted()[0], script_summary())),
    "machine.txt": lambda: terminal.render_machine(WITH_GPU, DISTURBED, rate(DISTURBED)),
    "scenarios.txt": lambda: terminal.render_scenarios([AMP, PINNED]),
    "scenario.txt": lambda: terminal.render_scenario(AMP),
}


def regenerate() -> None:
    """Write every golden report."""
    GOLDEN.mkdir(exist_ok=True)
    for name, report in REPORTS.items():
        (GOLDEN / name).write_text(report().rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    regenerate()
