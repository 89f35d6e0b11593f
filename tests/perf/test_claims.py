"""What the scenarios and the README claim of the reference trainings, measured: `pytest --perf tests/perf`.

Only claims that hold on any machine with two cores or more; how much a setting buys is for `perftool tune` to say.
perftool's own hot paths are measured by `bench_overhead` (the loop of steps) and `bench_report` (analysis and page): it
runs the same on both sides of a claim, which therefore cannot show it.
"""

from __future__ import annotations

import sys

import pytest

from perftool.pytest_plugin import PerfCheck

SEED, SMALL, MEDIUM = (f"scenarios.reference:{name}" for name in ("seed", "small", "medium"))


def test_loader_workers_do_not_pay_on_data_in_memory(perf_check: PerfCheck) -> None:
    perf_check.not_faster(SMALL, {"dataloader_workers": 2})


def test_gathering_whole_batches_is_faster_than_row_by_row(perf_check: PerfCheck) -> None:
    perf_check.faster(SMALL, {"batch_gather": "on"})


def test_a_fused_optimizer_is_faster_where_operations_are_short(perf_check: PerfCheck) -> None:
    perf_check.faster(SEED, {"optimizer_kernel": "fused"}, by=0.1)


def test_one_optimizer_operation_per_tensor_is_not_faster_than_fused(perf_check: PerfCheck) -> None:
    perf_check.not_faster(SEED, {"optimizer_kernel": "foreach"}, than={"optimizer_kernel": "fused"})


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_keeping_freed_memory_is_faster_where_activations_are_large(perf_check: PerfCheck) -> None:
    perf_check.faster(MEDIUM, {"malloc_retention": "on"})


def test_a_step_compiled_as_a_whole_buys_more_than_a_fused_optimizer_does(perf_check: PerfCheck) -> None:
    # The two exclude each other; the fused one was never seen to buy more than half.
    perf_check.faster(SEED, {"compiled_step": 10}, by=0.5, budget_s=120)
