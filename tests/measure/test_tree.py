"""Trees of real processes, stopped, continued and killed as one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from perftool.measure.keeper import read_stat
from perftool.measure.tree import ProcessTree

pytestmark = pytest.mark.process

LIMIT_S = 20.0

# A parent that begets children of the kinds that commands have, prints their numbers, and waits.
FAMILY = """
import os, signal, sys, time
def child(*, setsid=False, orphan=False, catches=False):
    read, write = os.pipe()
    if os.fork() == 0:
        if setsid: os.setsid()
        if orphan and os.fork() > 0: os._exit(0)
        if catches: signal.signal(signal.SIGCONT, lambda *_: None)
        os.write(write, str(os.getpid()).encode())
        while True: time.sleep(0.001)
    return int(os.read(read, 20))
print(child(), child(setsid=True), child(catches=True), flush=True)
sys.stdin.read()
"""


def eventually(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def state(pid: int) -> str:
    stat = read_stat(pid)
    return "gone" if stat is None else stat.state


@pytest.fixture
def family() -> Iterator[list[int]]:
    """The parent's number, then a plain child's, one's in its own session, one's that catches SIGCONT."""
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [process.pid, *map(int, process.stdout.readline().split())]
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_finds_children_in_other_sessions_but_neither_the_root_nor_strangers(family: list[int]) -> None:
    assert sorted(ProcessTree(family[0]).pids()) == sorted(family[1:])


def test_stops_and_resumes_all_but_what_catches_the_continue_signal(family: list[int]) -> None:
    _, plain, session, catches = family
    tree = ProcessTree(family[0])
    tree.stop()
    assert (state(plain), state(session)) == ("T", "T")
    assert state(catches) not in "Tt"
    tree.resume()
    assert eventually(lambda: state(plain) != "T" and state(session) != "T")


def test_resume_leaves_stopped_what_somebody_else_has_stopped(family: list[int]) -> None:
    _, plain, session, _ = family
    os.kill(plain, signal.SIGSTOP)
    assert eventually(lambda: state(plain) == "T")
    tree = ProcessTree(family[0])
    tree.stop()
    tree.resume()
    assert eventually(lambda: state(session) != "T")
    assert state(plain) == "T"


def parent_of(command: list[str], **environment: str) -> tuple[subprocess.Popen[bytes], int]:
    """A process that has started a command and waits, and the command's number."""
    starts = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", starts, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_stops_what_forks_all_the_time() -> None:
    forks = "import os\nwhile True:\n pid = os.fork()\n if pid == 0: os._exit(0)\n os.waitpid(pid, 0)"
    process, forking = parent_of([sys.executable, "-c", forks])
    tree = ProcessTree(process.pid)
    try:
        for _ in range(20):
            tree.stop()
            assert {state(pid) for pid in tree.pids()} <= {"T", "Z", "D", "gone"}
            tree.resume()
    finally:
        assert tree.kill() >= 1
        process.communicate()
    assert not alive(forking)


def test_kill_reaches_stopped_ones_and_says_how_many(family: list[int]) -> None:
    tree = ProcessTree(family[0])
    tree.stop()
    assert tree.kill() == 3
    assert not any(alive(pid) for pid in family[1:])


def test_an_orphan_whose_keeper_has_died_is_found_by_its_mark() -> None:
    process, orphan = parent_of(["sleep", "1000"], MARK="of this test")
    unmarked, marked = ProcessTree(process.pid), ProcessTree(process.pid, "MARK=of this test")
    process.kill()
    process.communicate()
    assert unmarked.kill() == 0
    assert marked.kill() == 1
    assert not alive(orphan)
