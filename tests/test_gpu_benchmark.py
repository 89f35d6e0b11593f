"""The judge of the GPU's figures, as far as a CPU can run it."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import torch

from benchmarks.gpu import plain

CHECK = Path(plain.__file__).with_name("check.sh")


def test_every_way_to_load_yields_each_row_once_an_epoch() -> None:
    size = plain.MEDIUM
    per_epoch = size.rows // size.batch_size
    for name, feed in plain.FEEDS.items():
        batches = list(itertools.islice(feed(size), per_epoch))
        rows = torch.cat([batch[0] for batch in batches])
        assert len(rows) == size.rows, name
        assert torch.equal(rows.sum(dim=1).sort().values, size.tensors[0].sum(dim=1).sort().values), name
        inside = rows[:, :1] ** 2 + rows[:, 1:2] ** 2 < 1
        assert torch.equal(torch.cat([batch[1] for batch in batches]), inside.float()), name


def test_the_arithmetic_of_a_step_is_counted() -> None:
    size = plain.Size("tiny", [4, 8, 1], rows=8, batch_size=2)
    forward = 2 * 2 * (4 * 8 + 8 * 1)
    assert size.flops == 3 * forward - 2 * 2 * 4 * 8


def test_the_script_is_a_script_and_knows_the_tests_that_need_a_gpu() -> None:
    subprocess.run(["bash", "-n", str(CHECK)], check=True)
    assert "plain.py" in CHECK.read_text(encoding="utf-8")
    assert "mark.gpu" in CHECK.read_text(encoding="utf-8")
