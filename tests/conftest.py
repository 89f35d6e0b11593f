"""What every test starts and ends with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MEASURES = pytest.mark.xdist_group("measures")
"""Of tests that run commands which measure: those wait for each other, so that two workers had better not run them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For tests whose settings are those of a whole process: threads and the precision of matmuls."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
