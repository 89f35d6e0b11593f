"""An independent judge: plain PyTorch, nothing of perftool. The device's ceilings, and what the main levers gain on
`medium` and `large`.

`python benchmarks/gpu/plain.py FIGURES.json [SECONDS]` prints tables and writes all figures as they come. On a CPU
everything is tiny, so that one sees that it runs.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if CUDA else "cpu")
STRETCH_S = 0.4 if CUDA else 0.02
ON_END_S = 1.5  # by which heat and the limit of power show in the clock
RING = 3  # pinned batches: one that is filled, one that is copied, one that is computed on

Call = Callable[[], Tensor]
Batch = list[Tensor]
FOUND: dict[str, Any] = {}


# ------------------------------------------------------------------------------------------------------------- clocks


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def mark() -> Any:
    """A moment on the stream, or on a CPU the present one."""
    if not CUDA:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between_s(first: Any, last: Any) -> float:
    """Both have happened."""
    return float(first.elapsed_time(last)) / 1e3 if CUDA else last - first


def steady_s(call: Call, seconds: float, drop: int = 3) -> float:
    """Of a call in the long run: from event to event, with nothing waited for before the first."""
    for _ in range(drop):
        call()
    first, calls, began_s = mark(), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - began_s < seconds:
        call()
        calls += 1
    last = mark()
    wait()
    return between_s(first, last) / calls


def batched_s(call: Call, calls: int = 20, trials: int = 3) -> float:
    """Of a call among many between two events, without what the host takes to launch one; the least of the trials."""
    found = []
    for _ in range(trials):
        call()
        first = mark()
        for _ in range(calls):
            call()
        last = mark()
        wait()
        found.append(between_s(first, last) / calls)
    return min(found)


# ---------------------------------------------------------------------------------------------------------- trainings


@dataclass
class Size:
    """A training of the reference: is a point of so many dimensions inside the circle of its first two?"""

    name: str
    widths: list[int]
    rows: int
    batch_size: int

    @property
    def flops(self) -> int:
        """Of a step: forward, and a backward that needs no gradient of the inputs."""
        forward = 2 * self.batch_size * sum(one * other for one, other in pairwise(self.widths))
        return 3 * forward - 2 * self.batch_size * self.widths[0] * self.widths[1]

    @cached_property
    def tensors(self) -> Batch:
        x = 2 * torch.rand(self.rows, self.widths[0], generator=torch.Generator().manual_seed(0)) - 1
        return [x, (x[:, :1] ** 2 + x[:, 1:2] ** 2 < 1).float()]

    @cached_property
    def resident(self) -> Batch:
        return [part.to(DEVICE) for part in self.tensors]

    def model(self) -> nn.Module:
        layers = [
            layer for one, other in pairwise(self.widths) for layer in (nn.Linear(one, other, device=DEVICE), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-1])


MEDIUM = Size("medium", [256, 1024, 1024, 1], 65_536, 256) if CUDA else Size("medium", [16, 32, 32, 1], 512, 32)
LARGE = Size("large", [4096, 8192, 8192, 1], 32_768, 8192) if CUDA else Size("large", [64, 128, 128, 1], 256, 64)


def rows_of(size: Size, device: torch.device | str) -> Iterator[Tensor]:
    generator = torch.Generator(device).manual_seed(1)
    while True:
        yield from torch.randperm(size.rows, generator=generator, device=device).split(size.batch_size)  # type: ignore[no-untyped-call]


def by_loader(size: Size) -> Iterator[Batch]:
    """What everybody writes."""
    while True:
        for batch in DataLoader(TensorDataset(*size.tensors), batch_size=size.batch_size, shuffle=True):
            yield [part.to(DEVICE) for part in batch]


def by_gathering(size: Size) -> Iterator[Batch]:
    """Rows of each batch at once, into pinned memory, copied on the training's stream."""
    for rows in rows_of(size, "cpu"):
        parts = [part.index_select(0, rows) for part in size.tensors]
        yield [(part.pin_memory() if CUDA else part).to(DEVICE, non_blocking=True) for part in parts]


def by_prefetching(size: Size) -> Iterator[Batch]:
    """Into a ring of pinned batches, copied on a stream of their own."""
    ring = [
        [torch.empty(size.batch_size, part.shape[1], pin_memory=CUDA) for part in size.tensors] for _ in range(RING)
    ]
    side = torch.cuda.Stream() if CUDA else None  # type: ignore[no-untyped-call]
    copied: list[Any] = [None] * RING
    for turn, rows in enumerate(rows_of(size, "cpu")):
        at = turn % RING
        if copied[at] is not None:
            copied[at].synchronize()
        for source, target in zip(size.tensors, ring[at], strict=True):
            torch.index_select(source, 0, rows, out=target)
        if side is None:
            yield [part.clone() for part in ring[at]]
            continue
        with torch.cuda.stream(side):
            parts = [part.to(DEVICE, non_blocking=True) for part in ring[at]]
            copied[at] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied[at].record()
        torch.cuda.current_stream().wait_stream(side)
        for part in parts:
            part.record_stream(torch.cuda.current_stream())
        yield parts


def by_residence(size: Size) -> Iterator[Batch]:
    """From tensors that are on the device."""
    for rows in rows_of(size, DEVICE):
        yield [part.index_select(0, rows) for part in size.resident]


FEEDS = {"loader": by_loader, "gathered": by_gathering, "prefetched": by_prefetching, "resident": by_residence}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]).float(), batch[1])


def captured(call: Call) -> Call:
    """As a CUDA graph; on a CPU as it is."""
    if not CUDA:
        return call
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = call()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


class Case:
    """One way to train a size."""

    def __init__(
        self,
        size: Size,
        feed: str,
        *,
        bf16: bool = False,
        tf32: bool = False,
        fused: bool = False,
        graph: bool = False,
        compiled: bool = False,
    ) -> None:
        chosen = {"bf16": bf16, "tf32": tf32, "fused": fused, "compiled": compiled, "graph": graph}
        self.size, self._tf32 = size, tf32
        self.name = ", ".join([feed, *(name for name, is_on in chosen.items() if is_on)])
        self._set_precision()
        torch.manual_seed(0)
        model = size.model()
        options: dict[str, Any] = {"fused": fused, "capturable": graph and CUDA}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **options)
        compute = torch.compile(loss_of, dynamic=False) if compiled else loss_of
        batches = FEEDS[feed](size)

        def step(batch: Batch) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=bf16):
                loss = compute(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()

        self.call: Call = lambda: step(next(batches))
        if graph:
            static = [part.clone() for part in next(batches)]
            replay = captured(lambda: step(static))

            def copy_and_replay() -> Tensor:
                for ours, theirs in zip(static, next(batches), strict=True):
                    ours.copy_(theirs, non_blocking=True)
                return replay()

            self.call = copy_and_replay
        for _ in range(3):
            self.call()
        wait()

    def _set_precision(self) -> None:
        torch.set_float32_matmul_precision("high" if self._tf32 else "highest")

    def steady_s(self, seconds: float) -> float:
        self._set_precision()
        return steady_s(self.call, seconds)


def compared(name: str, cases: list[Case], rounds: int, seconds: float, peak: float | None = None) -> None:
    """All cases in a drawn order, round by round; ratios to the first one of the same round.

    peak: FLOP/s of the device in bfloat16, to tell the share of.
    """
    times_s: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for at in random.sample(range(len(cases)), len(cases)):
            times_s[at].append(cases[at].steady_s(seconds))
    rows: list[dict[str, Any]] = []
    for case, own_s in zip(cases, times_s, strict=True):
        gains = sorted(base_s / one_s for base_s, one_s in zip(times_s[0], own_s, strict=True))
        rows.append(
            {
                "case": case.name,
                "step_ms": 1e3 * median(own_s),
                "gain": median(gains),
                "gain_low": gains[0],
                "gain_high": gains[-1],
                "share_of_bf16_peak": case.size.flops / median(own_s) / peak if peak else None,
                "loss": float(case.call()),
            }
        )
        share = f"{rows[-1]['share_of_bf16_peak']:.0%}" if peak else ""
        print(
            f"{case.name:36s} {rows[-1]['step_ms']:9.3f} ms {rows[-1]['gain']:6.2f}x ({gains[0]:.2f} to "
            f"{gains[-1]:.2f}) {share}"
        )
    keep(name, rows)


# ------------------------------------------------------------------------------------------------------------ figures


def ceilings() -> dict[str, float]:
    """FLOP/s of square matmuls by type, of bfloat16 also for seconds on end; bytes/s of copies."""
    size = 8192 if CUDA else 256
    found: dict[str, float] = {}
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
    for name, dtype in kinds.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        left, right = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
        product = torch.empty_like(left)

        def multiply(left: Tensor = left, right: Tensor = right, product: Tensor = product) -> Tensor:
            return torch.mm(left, right, out=product)

        found[name] = 2 * size**3 / batched_s(multiply, 20 if CUDA and name != "fp32" else 3)
        if name == "bf16" and CUDA:
            found["bf16, on end"] = 2 * size**3 / steady_s(multiply, ON_END_S)
    torch.set_float32_matmul_precision("highest")
    host = torch.empty(2**27 if CUDA else 2**20, dtype=torch.uint8)
    for name, source in {"pageable": host, "pinned": host.pin_memory() if CUDA else host}.items():
        there = torch.empty_like(host, device=DEVICE)

        def copy(source: Tensor = source, there: Tensor = there) -> Tensor:
            return there.copy_(source, non_blocking=True)

        found[f"host to device, {name}"] = host.numel() / batched_s(copy, 5)
    for name, figure in found.items():
        print(f"{name:36s} {figure / 1e12:9.3f} T/s")
    return found


def keep(name: str, figures: Any) -> None:
    """Write down, with all that came before."""
    FOUND[name] = figures
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(FOUND, indent=1, default=str), encoding="utf-8")


def main() -> int:
    """As much as fits into the time; a failure is told, and the rest goes on."""
    limit_s, began_s = float(sys.argv[2]) if len(sys.argv) > 2 else 75.0, time.monotonic()
    peak: dict[str, float] = {}
    failed = 0

    def of_ceilings() -> None:
        peak.update(ceilings())
        keep("ceilings", peak)

    def of_medium() -> None:
        plain = [Case(MEDIUM, "loader"), Case(MEDIUM, "loader"), Case(MEDIUM, "gathered"), Case(MEDIUM, "prefetched")]
        resident = [Case(MEDIUM, "resident"), Case(MEDIUM, "resident", fused=True, graph=True)]
        graphed = [Case(MEDIUM, feed, fused=True, graph=True) for feed in ("gathered", "prefetched")]
        compared("medium", [*plain, *graphed, *resident], rounds=5, seconds=STRETCH_S / 2)

    def of_large() -> None:
        cases = [
            Case(LARGE, "loader"),
            Case(LARGE, "loader", bf16=True),
            Case(LARGE, "gathered", bf16=True, fused=True),
            Case(LARGE, "prefetched", bf16=True, fused=True),
            Case(LARGE, "resident", tf32=True, fused=True),
            Case(LARGE, "resident", bf16=True, fused=True),
            Case(LARGE, "resident", bf16=True, fused=True, graph=True),
        ]
        compared("large", cases, rounds=3, seconds=STRETCH_S, peak=peak.get("bf16"))

    def of_compiled() -> None:
        cases = [Case(MEDIUM, "resident"), Case(MEDIUM, "resident", fused=True, graph=True, compiled=True)]
        compared("medium, compiled", cases, rounds=3, seconds=STRETCH_S / 2)

    for section in (of_ceilings, of_medium, of_large, of_compiled):
        left_s = limit_s - (time.monotonic() - began_s)
        print(f"\n--- {section.__name__.removeprefix('of_')} ({left_s:.0f} s left)", flush=True)
        if left_s <= 0:
            print("left out: no time is left")
            continue
        try:
            section()
        except Exception:
            failed += 1
            traceback.print_exc()
            keep(f"failed: {section.__name__}", traceback.format_exc())
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
