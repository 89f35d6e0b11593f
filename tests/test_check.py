"""`perftool check` in a sample repository with real git, real processes and each side's own code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from perftool.errors import INTERRUPTED
from perftool.measure.worktree import PREFIX
from perftool.records import Summary, from_json
from perftool.store import load_baseline, load_history, load_session
from tests.measure.test_worktree import git, worktrees

pytestmark = pytest.mark.process

LIMIT_S = 280
TRAIN = """
import torch
from torch import nn
from net import Net
from perftool.workload import Workload

mine = Workload(
    model=Net,
    dataset=lambda: (torch.ones(64, 8), torch.ones(64, 1)),
    loss=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    batch_size=16,
    settings={"threads": 1},
)
"""
LINKED = """
from pathlib import Path
if not Path("../data/rows").is_file():
    raise FileNotFoundError("no rows in " + str(Path("../data").resolve()))
"""
SCRIPT = """
import torch
from net import Net

torch.set_num_threads(1)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
for _ in range(100_000):
    optimizer.zero_grad()
    model(torch.ones(16, 8)).pow(2).mean().backward()
    optimizer.step()
"""
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A training that imports its model from `src`, as an editable install would: by a path into the working tree."""
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    (root / "train.py").write_text(TRAIN)
    (root / "src" / "net.py").write_text(NET.replace("WIDTH", "16"))
    (root / ".gitignore").write_text("out/\n__pycache__/\n")
    git(root, "init", "--quiet", "--initial-branch", "main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def command(root: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What runs a check, and the environment that it runs in."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root / "src")]))
    budget = [] if "--budget" in arguments else ["--budget", "2"]
    line = [sys.executable, "-P", "-m", "perftool", "check", "--out", "out", *budget, *arguments]
    return line, {**os.environ, "PYTHONPATH": path}


def check(root: Path, *arguments: str, folder: str = ".") -> subprocess.CompletedProcess[str]:
    line, environment = command(root, *arguments)
    return subprocess.run(line, cwd=root / folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def nothing_left(root: Path) -> bool:
    """No worktree, neither its folder nor that git knows of one."""
    return len(worktrees(root)) == 1 and not list((root / ".git").glob(f"{PREFIX}*"))


def test_each_side_runs_its_own_code(repository: Path) -> None:
    (repository / "src" / "net.py").write_text(NET.replace("WIDTH", "32"))
    done = check(repository, "train.py:mine", "--against", "main")
    assert done.returncode == 1, done.stderr
    assert "regression against main" in done.stdout
    assert "parameters" in done.stdout
    [folder] = (repository / "out").iterdir()
    counters = {one.variant: one for one in load_session(folder).counters}
    assert counters[0].parameters == 8 * 16 + 16 + 16 + 1
    assert counters[1].parameters == 8 * 32 + 32 + 32 + 1
    assert counters[0].modules == counters[1].modules == ["src/net.py", "train.py"]
    assert json.loads((folder / "summary.json").read_text())["check"]["outcome"] == "regression"
    assert "Every metric before and now" in (folder / "report.html").read_text()
    assert len(worktrees(repository)) == 1


def test_each_side_of_a_command_runs_its_own_code(repository: Path) -> None:
    (repository / "script.py").write_text(SCRIPT)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "a script")
    (repository / "src" / "net.py").write_text(NET.replace("WIDTH", "32"))
    done = check(repository, "--against", "main", "--", sys.executable, "script.py")
    assert done.returncode == 1, done.stderr
    [folder] = (repository / "out").iterdir()
    counters = {one.variant: one for one in load_session(folder).counters}
    assert counters[0].parameters == 8 * 16 + 16 + 16 + 1
    assert counters[1].parameters == 8 * 32 + 32 + 32 + 1
    assert counters[0].modules == counters[1].modules == ["script.py", "src/net.py"]
    assert done.stderr.count("not held back:") == 1
    assert "changed while measuring" not in done.stderr
    assert nothing_left(repository)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py:mine"], "takes --against"),
        (["train.py:mine", "--against", "nonsense"], "git knows no such revision"),
        (["train.py:mine", "--against", "main", "-s", "nonsense=1"], "nonsense"),
        (["train.py:other", "--against", "main"], "has no attribute 'other'"),
        (["later.py:mine", "--against", "main"], "there is no file later.py at main"),
        (["missing.py:mine", "--against", "main"], "there is no file missing.py"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(arguments: list[str], words: str, repository: Path) -> None:
    (repository / "later.py").write_text(TRAIN)
    done = check(repository, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((repository / "out").iterdir() if (repository / "out").exists() else [])
    assert len(worktrees(repository)) == 1


def test_a_training_that_fails_in_the_working_tree_names_it(repository: Path) -> None:
    (repository / "src" / "net.py").write_text("raise RuntimeError('broken here')\n")
    done = check(repository, "train.py:mine", "--against", "main")
    assert done.returncode == 2
    assert "working tree: train.py cannot be imported" in done.stderr
    assert "broken here" in done.stderr
    assert nothing_left(repository)


def test_a_training_that_fails_at_the_revision_names_it(repository: Path) -> None:
    net = repository / "src" / "net.py"
    net.write_text("raise RuntimeError('broken there')\n")
    git(repository, "commit", "--quiet", "--all", "-m", "broken")
    net.write_text(NET.replace("WIDTH", "16"))
    done = check(repository, "train.py:mine", "--against", "HEAD")
    assert done.returncode == 2
    assert "HEAD: train.py cannot be imported" in done.stderr
    assert "broken there" in done.stderr
    assert nothing_left(repository)


def test_an_unchanged_head_in_a_subdirectory_with_data_that_git_ignores(repository: Path) -> None:
    (repository / "jobs").mkdir()
    git(repository, "mv", "train.py", "jobs/train.py")
    (repository / "jobs" / "train.py").write_text(LINKED + TRAIN)
    (repository / ".gitignore").write_text("out/\n__pycache__/\n/data/\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "jobs")
    (repository / "data").mkdir()
    (repository / "data" / "rows").write_text("1\n")
    against = ["train.py:mine", "--against", "HEAD"]
    done = check(repository, *against, folder="jobs")
    assert done.returncode == 2
    assert "HEAD: train.py cannot be imported" in done.stderr
    assert "no rows in" in done.stderr

    history = "out/history.jsonl"
    done = check(repository, *against, "--link", "../data", "--json", "--history", history, folder="jobs")
    # So short a check may stay undecided on a busy machine; it must not fail.
    assert done.returncode in (0, 3), done.stderr
    summary = from_json(done.stdout, Summary)
    assert summary.check is not None
    assert summary.workload == "train.py:mine"
    assert (summary.check.modules_against, summary.check.modules_now) == (2, 2)
    counted = {one.metric: one for one in summary.check.metrics if one.counted}
    assert {one.verdict for one in counted.values()} == {"no regression"}
    assert counted["parameters"].now == 8 * 16 + 16 + 16 + 1
    assert (repository / "data" / "rows").exists()
    assert nothing_left(repository)

    [entry] = load_history(repository / "jobs" / history)
    assert entry.outcome == summary.check.outcome
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "perftool", "history", history],
        cwd=repository / "jobs",
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "train.py:mine with threads=1 against" in shown.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_nothing_behind(number: signal.Signals, repository: Path) -> None:
    """Interrupted twice, while both sides are measured, as somebody in a hurry would."""
    line, environment = command(repository, "train.py:mine", "--against", "main", "--budget", "600")
    with subprocess.Popen(
        line, cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = monotonic() + LIMIT_S
        while not list((repository / "out").glob("*/*.jsonl")) and running.poll() is None and monotonic() < deadline:
            sleep(0.05)
        [folder] = (repository / ".git").glob(f"{PREFIX}*")
        assert folder.exists()
        running.send_signal(number)
        sleep(0.1)
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
    # The second may come when all is done and only the program's end is left, which SIGTERM may cut short.
    assert running.returncode in (INTERRUPTED, -number), told
    assert "Traceback" not in told
    assert nothing_left(repository)


DIES = """
from pathlib import Path
from torch import nn

starts = Path(__file__).with_name("starts")
starts.write_text(starts.read_text() + "." if starts.exists() else ".")

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        if len(starts.read_text()) >= START:
            raise RuntimeError("broke in the midst")
        return super().forward(x)
"""


def test_a_side_that_dies_while_measuring_is_an_error_and_keeps_the_session(repository: Path) -> None:
    # It is started to be described, to be counted, and for each generation: the second one does not come to a step.
    (repository / "src" / "net.py").write_text(DIES.replace("START", "4"))
    done = check(repository, "train.py:mine", "--against", "main", "--history", "out/history.jsonl")
    assert done.returncode == 4, done.stderr
    assert "measuring ended early: working tree: " in done.stderr
    assert "broke in the midst" in done.stderr
    assert "Traceback" not in done.stderr
    assert "not measured to the end against main" in done.stdout
    [folder] = (repository / "out").iterdir()  # and no history
    assert load_session(folder).blocks
    assert (folder / "report.html").exists()
    assert len(worktrees(repository)) == 1


def test_a_side_that_dies_in_its_first_steps_is_told_before_anything_is_measured(repository: Path) -> None:
    (repository / "src" / "net.py").write_text(DIES.replace("START", "1"))
    done = check(repository, "train.py:mine", "--against", "main")
    assert done.returncode == 2, done.stderr
    assert "working tree: " in done.stderr
    assert "broke in the midst" in done.stderr
    assert not list((repository / "out").iterdir())


def test_a_workload_of_another_place_is_no_check(repository: Path) -> None:
    done = check(repository, "--against", "main")  # the reference workload, installed elsewhere
    assert done.returncode == 2, done.stderr
    assert "both sides would run the same code" in done.stderr
    assert "name a workload" in done.stderr
    assert not list((repository / "out").iterdir())


def test_a_baseline_is_stored_and_compared_with_and_strict_fails_an_improvement(repository: Path) -> None:
    moved = ["-s", "gc_policy=freeze"]
    done = check(repository, "train.py:mine", "--write-baseline", *moved)
    if done.returncode == 3 and "its launches differ" in done.stderr:
        pytest.skip("this machine is too busy to store anything")
    assert done.returncode == 0, done.stderr
    file = Path("out/baselines/train-mine.json")
    assert f"perftool check train.py:mine --baseline {file} -s gc_policy=freeze" in done.stderr
    assert "for later checks" in done.stdout
    assert "calibration kernels" in done.stdout
    assert "do not count" not in done.stdout  # the words of a comparison
    assert load_baseline(repository / file).workload == "train.py:mine"
    (repository / "src" / "net.py").write_text(NET.replace("WIDTH", "8"))  # fewer parameters, on any machine
    again = check(repository, "train.py:mine", "--baseline", str(file), "--json", "--strict", *moved)
    assert again.returncode == 1, again.stderr
    summary = from_json(again.stdout, Summary)
    assert summary.check is not None
    # Two hours on a busy machine may differ in what is measured, too.
    assert "failed by --strict" in again.stderr or summary.check.outcome == "regression"
    assert summary.check.stored
    counted = {one.metric: one.verdict for one in summary.check.metrics if one.counted}
    assert counted["parameters"] == "improvement"
    assert set(counted.values()) == {"improvement", "no regression"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--against", "main", "--history", "train.py/history.jsonl"],
        ["--against", "main", "--history", "src"],
        ["--write-baseline", "--baseline", "train.py/baseline.json"],
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_measuring(arguments: list[str], repository: Path) -> None:
    done = check(repository, "train.py:mine", *arguments)
    assert done.returncode == 5
    assert "name another file" in done.stderr
    assert not (repository / "out").exists()
