"""Let the CUDA allocator grow its segments instead of adding new ones.

What it changes: `expandable_segments:True`: memory of the GPU is mapped page by page into segments that can grow,
    so that blocks of new sizes find room beside the old ones.
When it helps: batches of changing shape in a GPU that is nearly full: less of its memory is lost between blocks,
    and the allocator need not give up and start over. It saves memory, and time only where that happened.
When it hurts: not with CUDA graphs, where hangs were reported; sharing tensors between processes.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import FRAGMENTATION, RETRIES, Engaged, Settings

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

VALUES = ("default", "expandable_segments")
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # of torch 2.9 and newer, and of older ones
CONFIGURATION = "expandable_segments:True"
GRAPHED_COMPILATION = ("reduce-overhead", "max-autotune")  # modes of torch_compile that capture graphs


def default(_: Context) -> str:
    return "default"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "expandable_segments" and not context.on_cuda:
        return "there is no CUDA device: the training runs on the CPU"
    present = next((name for name in VARIABLES if name in context.machine.environment), None)
    if value == "expandable_segments" and present:
        return f"{present} is set in the environment and would be lost; unset it to try this"
    return refuse_unlisted(value, VALUES)


def clash(value: str, others: Settings) -> str | None:
    graphs = others.get("cuda_graphs") == "on" or others.get("torch_compile") in GRAPHED_COMPILATION
    if value == "expandable_segments" and graphs:
        return "hangs were reported of CUDA graphs with expandable segments"
    return None


def environment(value: str) -> Mapping[str, str]:
    return dict.fromkeys(VARIABLES, CONFIGURATION) if value == "expandable_segments" else {}


def apply(plan: Plan, value: str) -> Plan:
    return plan


def proof(training: Live, value: str) -> Engaged:
    """What the allocator says of its segments."""
    import torch

    segments = torch.cuda.memory_snapshot() if torch.cuda.is_available() else []  # type: ignore[no-untyped-call]
    expandable = sum(bool(segment.get("is_expandable")) for segment in segments)
    return Engaged(
        ok=bool(expandable) == (value == "expandable_segments"),
        evidence=f"{expandable} of {len(segments)} segments of GPU memory can grow",
    )


def code(value: str, _: Context) -> Code:
    if value == "default":
        return Code()
    lines = "\n".join(f'os.environ["{name}"] = "{CONFIGURATION}"' for name in VARIABLES)
    return Code(setup=f"import os\n\n{lines}  # before the first tensor on the GPU")


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={FRAGMENTATION: ("expandable_segments",), RETRIES: ("expandable_segments",)},
    environment=environment,
    clash=clash,
)
