"""Ceilings: positive figures of whatever this machine can do, and nothing changed by measuring them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec import convert

from perftool.probes import ceilings
from perftool.probes.ceilings import (
    Fields,
    cache_bytes,
    convolution_mode,
    precision_mode,
    precision_modes,
)
from perftool.records import Ceiling

CPU = torch.device("cpu")
MKLDNN: Any = torch.backends.mkldnn
CUDA: Any = torch.backends.cuda


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices and buffers, few calls."""
    monkeypatch.setattr(ceilings, "ROWS", {"cpu": (16, 64), "cuda": (16, 64)})
    monkeypatch.setattr(ceilings, "LARGE_COPY_BYTES", {"cpu": (2**16, 2**17), "cuda": (2**16, 2**17)})
    monkeypatch.setattr(ceilings, "SHORT_CALLS_NS", 1e5)


@pytest.fixture
def precision_as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    CUDA.matmul.fp32_precision = MKLDNN.matmul.fp32_precision = "none"


def measure_ceilings(device: torch.device, dtypes: Iterable[str] = ceilings.DTYPES) -> list[Ceiling]:
    """As records, strictly."""
    return [record_of(one) for one in ceilings.measure_ceilings(device, dtypes)]


def record_of(fields: Fields | None) -> Ceiling:
    return convert(fields, Ceiling, strict=True)


def sane(found: list[Ceiling]) -> None:
    for one in found:
        rate = one.flops_per_second if one.kind == "matmul" else one.bytes_per_second
        assert rate is not None
        assert math.isfinite(rate)
        assert rate > 0


def test_every_dtype_and_mode_has_a_ceiling_and_there_are_two_copies(quick: None) -> None:
    found = measure_ceilings(CPU, ["float32", "bfloat16", "float64"])
    sane(found)
    assert [(one.dtype, one.precision) for one in found if one.kind == "matmul"] == [
        ("float32", "highest"),
        ("float32", "medium"),
        ("bfloat16", None),
        ("float64", None),
    ]
    large, small = [one.buffer_bytes for one in found if one.kind == "copy"]
    assert large is not None
    assert small is not None
    assert large >= small > 0


def test_what_cannot_be_multiplied_has_none(quick: None) -> None:
    assert [one.kind for one in measure_ceilings(CPU, ["bool", "unknown"])] == ["copy", "copy"]


def test_random_numbers_and_threads_stay_as_they_are(quick: None) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    measure_ceilings(CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("mode", ["highest", "high", "medium"])
def test_the_precision_mode_is_put_back_and_is_among_those_measured(
    quick: None, precision_as_before: None, mode: str
) -> None:
    torch.set_float32_matmul_precision(mode)
    found = measure_ceilings(CPU, ["float32"])
    assert torch.get_float32_matmul_precision() == mode
    assert mode in [one.precision for one in found]


def test_a_precision_set_by_backend_is_put_back_as_well(quick: None, precision_as_before: None) -> None:
    MKLDNN.matmul.fp32_precision = "bf16"
    before = CUDA.matmul.fp32_precision
    assert precision_mode() is None  # torch refuses to say
    found = measure_ceilings(CPU, ["float32"])
    assert [one.precision for one in found if one.kind == "matmul"] == ["highest", "medium"]
    assert MKLDNN.matmul.fp32_precision == "bf16"
    assert CUDA.matmul.fp32_precision == before


def test_the_modes_of_a_device() -> None:
    assert precision_modes(CPU) == ["highest", "medium"]
    assert precision_modes(CPU, "high") == ["highest", "medium", "high"]
    assert precision_modes(torch.device("cuda")) == ["highest", "high"]


def test_convolutions_of_a_gpu_run_in_tf32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is there without a GPU, too."""
    cuda, cudnn = torch.device("cuda"), torch.backends.cudnn
    assert precision_mode() == "highest"
    assert (convolution_mode(cuda), convolution_mode(CPU)) == ("high", "highest")
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    assert convolution_mode(cuda) == "highest"
    monkeypatch.undo()
    assert convolution_mode(cuda) == "high"
    monkeypatch.setattr(cudnn, "enabled", False)
    assert convolution_mode(cuda) == "highest", "matmuls do the work of cuDNN"


def test_convolutions_and_recurrent_layers_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"conv": SimpleNamespace(fp32_precision="bf16"), "rnn": SimpleNamespace(fp32_precision="bf16")}
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace(**parts))
    assert convolution_mode(CPU) == "medium"
    parts["rnn"].fp32_precision = "ieee"
    assert convolution_mode(CPU) is None
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())  # an older torch
    assert convolution_mode(CPU) == "highest"


@pytest.mark.parametrize(
    ("seconds_of", "largest"),
    [
        (lambda rows: 1e-6 * rows, 4096),  # fast: up to the largest
        (lambda rows: (rows / 1024) ** 3 * 0.016, 2048),  # 16 ms at 1024: one more
        (lambda rows: 0.025, 128),  # emulated: the smallest alone
    ],
)
def test_sizes_grow_only_while_they_are_quick(
    monkeypatch: pytest.MonkeyPatch, seconds_of: Callable[[int], float], largest: int
) -> None:
    tried: list[int] = []

    def timed(device: torch.device, dtype: torch.dtype, rows: int) -> float:
        tried.append(rows)
        return 1e9 * seconds_of(rows)

    monkeypatch.setattr(ceilings, "_product_ns", timed)
    found = record_of(ceilings._best_product(CPU, "float32", "highest"))
    assert tried == [128 * 2**power for power in range(len(tried))]
    assert tried[-1] == largest
    assert found.flops_per_second == pytest.approx(max(2 * rows**3 / seconds_of(rows) for rows in tried))


def test_the_last_level_cache_is_the_highest_level_with_data(tmp_path: Path) -> None:
    caches = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "512K"), ("3", "Unified", "32768K")]
    for index, (level, kind, size) in enumerate(caches):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert cache_bytes(CPU, tmp_path) == 32 * 2**20
    (tmp_path / "index3" / "size").write_text("")
    assert cache_bytes(CPU, tmp_path) == 512 * 2**10
    assert cache_bytes(CPU, tmp_path / "nowhere") is None


@pytest.mark.gpu
def test_a_gpu_has_ceilings(quick: None) -> None:
    device = torch.device("cuda:0")
    found = measure_ceilings(device)
    sane(found)
    assert [one.precision for one in found if one.dtype == "float32" and one.kind == "matmul"] == ["highest", "high"]
    assert cache_bytes(device)
