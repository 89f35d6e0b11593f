"""What every test starts and ends with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

MEASURE = {f"tests/test_{name}.py" for name in ("check", "cli", "trace")}
"""Their commands wait until no other one measures, so one worker of xdist runs them and the others do the rest."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What xdist's groups are for, which its release 3.8 does not find with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "measure" if nodeid.partition("::")[0] in MEASURE else nodeid

    return Scheduling(config, log)


def pytest_configure() -> None:
    """Hear Ctrl-C, and let the commands that tests start hear it, also where a shell has started this in its
    background, which ignores it for all that comes after."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


Background = Callable[[Sequence[str], Path], "subprocess.Popen[str]"]


@pytest.fixture
def background() -> Iterator[Background]:
    """To start a command that goes on beside the test, in a folder, with pipes; it is gone after the test."""
    with ExitStack() as started:

        def start(words: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            process = started.enter_context(subprocess.Popen(words, cwd=cwd, stdout=pipe, stderr=pipe, text=True))
            started.callback(process.kill)
            return process

        yield start


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that are many and small; threads that wait for each other would make them slow on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """For tests that compile the same lines for one training after another: beyond some, torch gives up."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For tests whose settings hold for a whole process: threads, the precision of matmuls, kernels of attention."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    for enable in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
        getattr(torch.backends.cuda, enable)(True)
