"""Real commands below real keepers: how they end, what of their output is kept, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perftool.measure import keeper
from perftool.measure.kept import Kept, NotStarted
from tests.measure.test_tree import alive, eventually

pytestmark = pytest.mark.process

LIMIT_S = 30.0

# Starts a child that leaves its session and its parent, writes its number, and waits or ends.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("daemon.new", "w").write(str(os.getpid()))
        os.rename("daemon.new", "daemon")
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists("daemon"): time.sleep(0.001)
"""

Start = Callable[..., Kept]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `python -c SOURCE` below a keeper, in a folder of the test's own."""
    live: list[Kept] = []

    def started(source: str, **options: object) -> Kept:
        command = [sys.executable, "-c", source]
        live.append(Kept(command, folder=tmp_path, environment=os.environ, **options))  # type: ignore[arg-type]
        return live[-1]

    yield started
    for kept in live:
        kept.close()


def daemon(folder: Path) -> int:
    """The number of the daemon, once there is one."""
    assert eventually((folder / "daemon").exists)
    return int((folder / "daemon").read_text())


def test_runs_the_command_in_its_folder_with_nothing_to_read_in_a_session_of_its_own(
    start: Start, tmp_path: Path
) -> None:
    kept = start("import os, sys; print(os.getcwd(), sys.stdin.read() == '', os.getsid(0) == os.getpid())")
    assert kept.ended(LIMIT_S) == keeper.Ended(code=0, left=0)
    assert kept.printed() == f"{tmp_path.resolve()} True True\n"


@pytest.mark.parametrize(("source", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_says_how_the_command_ended(start: Start, source: str, code: int) -> None:
    ended = start(source).ended(LIMIT_S)
    assert ended is not None
    assert ended.code == code


def test_a_command_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match=r"could not be started: no-such-command: No such file"):
        Kept(["no-such-command"], folder=tmp_path, environment=os.environ)


def test_kills_and_counts_what_the_command_leaves_behind(start: Start, tmp_path: Path) -> None:
    assert start(DAEMON).ended(LIMIT_S) == keeper.Ended(code=0, left=1)
    assert not alive(daemon(tmp_path))


def test_orphans_are_stopped_and_resumed_with_the_rest(start: Start, tmp_path: Path) -> None:
    kept = start(DAEMON + "time.sleep(1000)")
    tree = [kept.pid, daemon(tmp_path)]
    kept.tree.stop()
    stats = [keeper.read_stat(pid) for pid in tree]
    assert [stat.state for stat in stats if stat] == ["T", "T"]
    kept.tree.resume()
    kept.close()
    assert not any(alive(pid) for pid in tree)


def test_close_kills_a_stopped_tree(start: Start, tmp_path: Path) -> None:
    kept = start(DAEMON + "time.sleep(1000)")
    tree = [kept.pid, daemon(tmp_path)]
    kept.tree.stop()
    kept.close()
    assert not any(alive(pid) for pid in tree)


def test_kill_ends_the_wait_of_another_thread(start: Start) -> None:
    kept = start("import time; time.sleep(1000)")
    kept.kill()
    ended = kept.ended(LIMIT_S)
    assert ended is not None
    assert not alive(kept.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_a_signal_to_the_keeper(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    kept = start(DAEMON + "time.sleep(1000)")
    tree = [kept.pid, daemon(tmp_path)]
    stat = keeper.read_stat(kept.pid)
    assert stat is not None
    os.kill(stat.parent, number)
    ended = kept.ended(LIMIT_S)
    assert ended is not None
    assert ended.code < 0
    assert not any(alive(pid) for pid in tree)


COMMANDER = """
import json, os, sys, time
from pathlib import Path
from perftool.measure.kept import Kept
kept = Kept(json.loads(sys.argv[1]), folder=Path(sys.argv[2]), environment=os.environ,
            scratch=[Path(sys.argv[2], "scratch")], leftovers=[Path(sys.argv[2], "leftovers")])
while not os.path.exists(sys.argv[2] + "/daemon"): time.sleep(0.001)
kept.tree.stop()
print(kept.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_perftool(tmp_path: Path, number: signal.Signals) -> None:
    for name in ("scratch", "leftovers"):
        (tmp_path / name / "forbidden").mkdir(parents=True)
        (tmp_path / name / "forbidden").chmod(0)
    command = json.dumps([sys.executable, "-c", DAEMON + "time.sleep(1000)"])
    perftool = subprocess.Popen(
        [sys.executable, "-c", COMMANDER, command, str(tmp_path)], stdout=subprocess.PIPE, process_group=0
    )
    assert perftool.stdout is not None
    tree = [int(perftool.stdout.readline()), daemon(tmp_path)]
    os.killpg(perftool.pid, number)
    perftool.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in tree))
    assert eventually(lambda: not (tmp_path / "scratch").exists() and not (tmp_path / "leftovers").exists())


def test_scratch_is_removed_at_the_end_and_leftovers_are_not(start: Start, tmp_path: Path) -> None:
    scratch, leftovers = tmp_path / "scratch", tmp_path / "leftovers"
    scratch.mkdir()
    leftovers.mkdir()
    start("pass", scratch=[scratch], leftovers=[leftovers]).close()
    assert not scratch.exists()
    assert leftovers.exists()


def test_keeps_the_beginning_and_the_end_of_what_a_command_prints(start: Start, tmp_path: Path) -> None:
    kept = start(
        "import os, sys, time\n"
        f"print('first', *[{'x' * 1023!r}] * 8 * 1024, sep='\\n', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.001)\n"
        "print('last')"
    )
    written = Path(f"/proc/{kept.pid}/fd/1")
    assert eventually(lambda: written.stat().st_size > 8 << 20)
    assert eventually(lambda: written.stat().st_blocks * 512 < 3 << 20)
    (tmp_path / "go").touch()
    assert kept.ended(LIMIT_S) == keeper.Ended(code=0, left=0)
    printed = kept.printed()
    assert printed.startswith("first\nxxx")
    assert printed.endswith("xxx\nlast\n")
    assert "bytes left out]" in printed
    assert len(printed) < 2.1 * (1 << 20)


def test_a_trimmed_file_gives_back_its_middle_and_is_written_on(tmp_path: Path) -> None:
    with (tmp_path / "output").open("ab") as file:
        file.write(b"x" * (10 << 20))
        file.flush()
        keeper.trim(file.fileno())
        file.write(b"end")
    assert (tmp_path / "output").stat().st_blocks * 512 < 3 << 20
    with (tmp_path / "output").open("rb") as read:
        read.seek(-3, os.SEEK_END)
        assert read.read() == b"end"
