"""Each example trains by itself, as its reader would start it: to its end, with a loss that falls."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {
    "accelerate_loop.py": "--num_epochs 2 --samples 320",
    "amp_already.py": "--epochs 2 --samples 320 --num-workers 0",
    "csv_rows.py": "--epochs 2 --rows 2000",
    "dlrm_like.py": "--num-batches 60 --print-freq 20 --test-freq 40 --mini-batch-size 32",
    "gan.py": "--epochs 2 --samples 320 --width 8 --seed 1",
    "gcn.py": "--epochs 41 --papers 900 --words 300",
    "hf_trainer.py": "--max_steps 80 --logging_steps 20 --samples 640 --eval_strategy steps --eval_steps 40",
    "jax_like_loop.py": "--steps 100",
    "lbfgs_series.py": "--steps 3 --length 12",
    "lightning_module.py": "--max-epochs 3 --samples 1600 --width 8",
    "mnist_cnn.py": "--epochs 2 --samples 1280 --log-every 10",
    "nanogpt_like.py": "--max-iters 30 --eval-interval 20 --eval-iters 5 --batch-size 2",
    "ppo_like.py": "--total-timesteps 2816 --num-envs 2",
    "siren.py": "--num-steps 30 --steps-til-summary 10 --side 32",
    "torchrun_ddp.py": "--epochs 2 --samples 3200",
    "unet.py": "--epochs 1 --images 160 --validate-every 12",
    "vae.py": "--epochs 2 --samples 2560",
    "word_language_model.py": "--epochs 2 --words 20000 --log-every 10",
}
MAY_RISE = ("gan.py", "ppo_like.py")  # they learn without a loss that falls
LOSS = re.compile(r"loss\W+(?:of D )?([-+.\w]+)")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(name: str, options: str, folder: Path, *, answer: str = "") -> subprocess.CompletedProcess[str]:
    """An example's own process, which leaves all that it writes in a folder."""
    launcher = TORCHRUN if name == "torchrun_ddp.py" else ()
    return subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *options.split()],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        input=answer,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.process
@pytest.mark.parametrize("name", SHORT)
def test_an_example_trains_to_its_end(name: str, tmp_path: Path) -> None:
    done = run(name, SHORT[name], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(loss) for loss in LOSS.findall(done.stdout)]
    assert len(losses) > 1
    assert all(math.isfinite(loss) for loss in losses), losses
    assert name in MAY_RISE or losses[-1] < losses[0], losses
    assert re.search(r"^[1-9]\d* steps in \d+\.\d\d s$", done.stdout, re.MULTILINE), "its own clock, for benchmarks"


@pytest.mark.process
def test_siren_asks_before_it_writes_over_a_folder(tmp_path: Path) -> None:
    old = tmp_path / "logs" / "siren" / "old.txt"
    old.parent.mkdir(parents=True)
    old.touch()
    done = run("siren.py", "--num-steps 20 --side 16", tmp_path, answer="y\n")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Overwrite? [y/n]" in done.stdout
    assert not old.exists()


def test_the_table_tells_of_each_example() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(SHORT)
    rows = re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(scripts)
