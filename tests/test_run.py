"""`perftool run`: a command as it is under settings, and what a recording of it leaves, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

import perftool
from perftool.analysis.recommend import conclude
from perftool.errors import BadInput
from perftool.jobs.run import prepared
from perftool.records import RecommendedSettings, Session, to_json
from perftool.report import html, markdown, terminal
from perftool.scenario import ScenarioError
from perftool.store import load_session

ROOT = Path(__file__).parents[1]
PERFTOOL = [sys.executable, "-P", "-m", "perftool", "run"]
LIMIT_S = 120
TRAINING = """
    import argparse, os, signal, sys, time, torch
    from torch.utils.data import DataLoader, TensorDataset
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--amp", action="store_true")
    arguments = parser.parse_args()
    model = torch.nn.Linear(4, arguments.width)
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(400, 4)), batch_size=4)
    began_s, steps = time.monotonic(), 0
    while steps < 100 or time.monotonic() - began_s < arguments.seconds:
        for x, in loader:
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
"""


def script(folder: Path, *more: str, begin: str = TRAINING) -> Path:
    path = folder / "train.py"
    path.write_text("\n".join(dedent(part) for part in (begin, *more)))
    return path


def run(folder: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PERFTOOL, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )


def session_in(folder: Path) -> Session:
    [path] = (folder / "results").iterdir()
    assert sorted(file.suffix for file in path.iterdir()) == [".html", ".json", ".json", ".md"]
    return load_session(path)


def recommended(folder: Path, **fields: object) -> str:
    record = RecommendedSettings(workload="train.py", **fields)  # type: ignore[arg-type]
    (folder / "recommended.json").write_bytes(to_json(record))
    return f"@{folder / 'recommended.json'}"


# ----------------------------------------------------------------------------------------------- what is put in force


def test_options_of_the_script_are_put_where_they_belong(tmp_path: Path) -> None:
    file = recommended(
        tmp_path,
        settings={"--width": "8", "--amp": "on", "SEED": "3"},
        options={"--width": "option", "--amp": "flag", "SEED": "variable"},
    )
    ready = prepared(["python", "train.py", "--width", "4"], [file], [], [])
    words, environment = ready.command()
    assert words == ["python", "train.py", "--width", "8", "--amp"]
    assert environment["SEED"] == "3"
    assert "PERFTOOL_SCRIPT" not in environment, "nothing of it needs a hook"


def test_variables_alone_need_no_hook() -> None:
    _, environment = prepared(["python", "train.py"], ["thp=on"], [], []).command()
    assert environment["THP_MEM_ALLOC_ENABLE"] == "1"
    assert "PERFTOOL_SCRIPT" not in environment


def test_what_was_measured_on_a_cpu_is_laid_over_for_one(tmp_path: Path) -> None:
    file = recommended(tmp_path, settings={"amp": "bf16"}, device="cpu")
    _, environment = prepared(["python", "train.py"], [file], [], []).command()
    assert json.loads(environment["PERFTOOL_SCRIPT"])["device"] == "cpu"


@pytest.mark.parametrize(("name", "known"), [("train.py", [[True], [False]]), ("other.py", [])])
def test_which_loaders_train_is_known_of_the_script_that_was_measured(
    tmp_path: Path, name: str, known: list[list[bool]]
) -> None:
    record = RecommendedSettings(
        workload="python train.py --epochs 3", settings={"dataloader_workers": "1"}, loaders=[[True], [False]]
    )
    (tmp_path / "recommended.json").write_bytes(to_json(record))
    _, environment = prepared(["python", name], [f"@{tmp_path / 'recommended.json'}"], [], []).command()
    assert json.loads(environment["PERFTOOL_SCRIPT"])["loaders"] == known


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["amq=bf16"], "there is no setting 'amq'"),
        (["amp=bf17"], "amp=bf17: it takes off, bf16 or fp16"),
        (["cuda_graphs=on"], "cuda_graphs=on: it replaces the whole step"),
        (["batch_size=64"], "batch_size=64: the script chooses its batches"),
        (["threads=none"], "threads=none: it takes a number of threads"),
    ],
)
def test_what_can_be_had_nowhere_is_refused_beforehand(settings: list[str], told: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        prepared(["python", "train.py"], settings, [], [])
    assert str(refused.value).startswith(told)


def test_a_python_that_keeps_hooks_out_is_refused_where_they_are_needed() -> None:
    ready = prepared(["python", "-I", "train.py"], ["amp=bf16"], [], [])
    with pytest.raises(BadInput, match="runs with -I, which keeps perftool out"):
        ready.command()
    prepared(["python", "-I", "train.py", "-S"], ["thp=on"], [], []).command()
    prepared(["python", "train.py", "-S"], ["amp=bf16"], [], []).command()  # the script's own


@pytest.mark.process
def test_the_command_takes_the_place_of_perftool(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        print(optimizer.param_groups[0]["fused"], torch.get_num_threads(), sys.stdin.read())
        print(signal.getsignal(signal.SIGPIPE), os.getppid(), file=sys.stderr)
        sys.exit(3)
        """,
    )
    done = subprocess.run(
        [*PERFTOOL, "-s", "optimizer_kernel=fused", "-s", "threads=1", "--", sys.executable, str(path)],
        input="told",
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=tmp_path,
    )
    assert (done.stdout, done.returncode) == ("True 1 told\n", 3)
    assert done.stderr.split()[-1] == str(os.getpid()), "no process of perftool is between"
    assert not (tmp_path / "results").exists()


@pytest.mark.process
def test_reduced_precision_is_inside_the_model(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        inside = []
        model.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
        print(model(torch.randn(2, 4)).dtype, inside, torch.nn.Module.__call__.__module__)
        """,
        begin=TRAINING.replace("steps < 100", "steps < 400"),
    )
    done = run(tmp_path, "-s", "amp=bf16", "--", sys.executable, path)
    assert (done.stdout, done.stderr) == ("torch.float32 [torch.bfloat16] torch.nn.modules.module\n", "")


@pytest.mark.process
def test_a_setting_that_finds_nothing_is_told(tmp_path: Path) -> None:
    path = script(
        tmp_path, begin=TRAINING.replace("Adam", "LBFGS").replace("optimizer.step()", "optimizer.step(lambda: loss)")
    )
    settings = ["-s", "optimizer_kernel=fused", "-s", "threads=1"]
    told = "perftool: optimizer_kernel=fused is not in force: the script stepped no optimizer that takes it\n"
    done = run(tmp_path, *settings, "--", sys.executable, path)
    assert (done.stderr, done.returncode) == (told, 0)
    done = run(tmp_path, "--record", *settings, "--", sys.executable, path)
    assert done.stderr.startswith(told)


@pytest.mark.process
def test_hooks_that_cannot_begin_end_the_training_before_it_has(tmp_path: Path) -> None:
    scenario = tmp_path / "broken.py"
    scenario.write_text(
        (ROOT / "scenarios" / "threads.py").read_text().replace("torch.set_num_threads", "torch.nonsense")
    )
    path = script(tmp_path, "print('trained')")
    done = run(tmp_path, "--scenario", scenario, "-s", "broken=2", "--", sys.executable, path)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("perftool: broken=2 cannot be put in force, so the training is not started: ")


@pytest.mark.process
def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    for words, told in (
        (["-s", "amq=on", "--", "true"], "there is no setting 'amq'"),
        (["--", "nonsense"], "there is no program nonsense"),
        ([], "there is no command after --"),
        (["--record", "--out", __file__, "--", "true"], "is a file; name a folder with --out"),
    ):
        done = run(tmp_path, *words)
        assert told in done.stderr
        assert done.returncode in (2, 5)
        assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------- recordings


@pytest.mark.process
def test_a_recording_is_a_session_that_reports_read(tmp_path: Path) -> None:
    path = script(tmp_path, "sys.exit(3)")
    done = run(tmp_path, "--record", "-s", "threads=1", "--", sys.executable, path, "--seconds", 3)
    assert (done.stdout, done.returncode) == ("", 3)
    assert "report: results/" in done.stderr
    session = session_in(tmp_path)
    assert (session.command, session.baseline, session.workload.batch_size) == ("run", {"threads": "1"}, 4)
    summary = conclude(session)
    assert summary.baseline.jitter is not None
    assert summary.baseline.jitter.steps > 100
    assert summary.baseline.warm_start_ns is not None
    assert summary.explained is not None
    assert {"data wait", "forward", "backward", "optimizer"} <= {phase.name for phase in summary.explained.phases}
    assert summary.baseline.data_wait_fraction is None, "it is known of the watched steps only"
    assert "the command ended with exit code 3" in summary.warnings
    for text in (terminal.render(summary), markdown.render(summary), html.render(session, summary)):
        assert "Adam" in text


@pytest.mark.process
def test_what_a_killed_training_has_done_is_kept(tmp_path: Path) -> None:
    path = script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    done = run(tmp_path, "--record", "--", sys.executable, path, "--seconds", 3)
    assert done.returncode == 128 + signal.SIGKILL
    assert sum(block.steps for block in session_in(tmp_path).blocks) > 100


@pytest.mark.process
def test_no_step_leaves_no_folder_and_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--record", "--", sys.executable, "-c", "print(1)")
    assert (done.stdout, done.returncode) == ("1\n", 0)
    assert done.stderr.startswith("perftool: no step was recorded: ")
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_sent_to_perftool_alone_reaches_the_command(tmp_path: Path, number: int) -> None:
    path = tmp_path / "waits.py"
    path.write_text(
        "import signal, sys\n"
        "for number in (1, 2, 15):\n"
        "    signal.signal(number, lambda number, _: sys.exit(40 + number))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    command = subprocess.Popen(
        [*PERFTOOL, "--record", "--", sys.executable, str(path)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(number)
        assert command.wait(LIMIT_S) == 40 + number


@pytest.mark.process
def test_ranks_of_torchrun_are_recorded_together(tmp_path: Path) -> None:
    torchrun = Path(sys.executable).parent / "torchrun"
    words = ["--nproc-per-node", 2, "--master-port", 0, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    path = script(tmp_path)
    done = run(tmp_path, "--record", "-s", "optimizer_kernel=fused", "--", torchrun, *words, path, "--seconds", 3)
    assert done.returncode == 0, done.stderr
    session = session_in(tmp_path)
    assert sorted(launch.launch for launch in session.launches) == [0, 1]
    assert session.workload.script is not None
    assert session.workload.script.ranks == 2
    assert all(block.samples == 8 * block.steps for block in session.blocks), "of both ranks"


@pytest.mark.process
def test_a_script_without_torch_says_where_its_steps_end(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import sys, time, perftool
        for _ in range(500):
            time.sleep(0.01)
            perftool.step(samples=3)
        assert "torch" not in sys.modules
        """,
        begin="",
    )
    done = run(tmp_path, "--record", "--", sys.executable, path)
    assert done.returncode == 0, done.stderr
    session = session_in(tmp_path)
    assert sum(block.steps for block in session.blocks) == 499
    assert all(block.samples == 3 * block.steps for block in session.blocks)
    assert run(tmp_path, "-s", "threads=1", "--", sys.executable, "-c", "import perftool").returncode == 0


def test_step_is_nothing_outside_perftool() -> None:
    code = "import sys, perftool; perftool.step(); assert not {'torch', 'msgspec'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=LIMIT_S)


# ------------------------------------------------------------------------------------------------------ in a process


def train(steps: int) -> None:
    import torch

    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()


def test_a_process_records_itself(tmp_path: Path) -> None:
    train(2)  # the first ones of a process import half of torch
    with perftool.record(tmp_path) as folder:
        train(50)
    session = load_session(folder)
    assert sum(block.steps for block in session.blocks) == 49
    assert session.machine.device == "cpu"


def test_what_was_recorded_before_an_error_is_kept(tmp_path: Path) -> None:
    def fail() -> None:
        with perftool.record(tmp_path):
            train(50)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    [folder] = tmp_path.iterdir()
    assert load_session(folder).blocks


def test_a_process_that_makes_no_step_says_so(tmp_path: Path) -> None:
    with pytest.raises(perftool.PerftoolError, match="no step was recorded"), perftool.record(tmp_path):
        time.sleep(0)
    assert not list(tmp_path.iterdir())
