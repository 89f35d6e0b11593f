"""Peers: installed while a benchmark runs, and used as their users do; loadtune's advice as plain code."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from perftool.analysis.handover import script
from perftool.records import WorkloadFacts

VERSION = "0.3.0"
WORKLOAD = Path(__file__).with_name("peer_workload.py")
ROOT = Path(__file__).parents[2]
INSTALL_LIMIT_S = 600
RUN_LIMIT_S = 900

BEST = re.compile(r"^\[loadtune\] best overall: (?P<label>.+) — (?P<ratio>[\d.]+)x baseline$", re.MULTILINE)
DONE = "[loadtune] report written to"

Knobs = Mapping[str, str]
"""What a label of loadtune's names, `workers=2, persistent` as {"workers": "2", "persistent": ""}."""


class UnavailableError(Exception):
    """loadtune cannot be installed here."""


@dataclass(frozen=True)
class Advice:
    """What one run told its user to do, and what it said that this buys."""

    label: str
    claim: float  # samples per second, over the baseline's
    knobs: Knobs


@contextmanager
def installed(name: str = "loadtune", version: str = VERSION) -> Iterator[Path]:
    """An environment of the package's own on top of this one, so that torch is the same; gives its command.

    Raises UnavailableError where the package cannot be had.
    """
    with TemporaryDirectory(prefix=f"{name}-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        [packages] = Path(folder).glob("lib/python*/site-packages")
        # A line that imports is run: the packages of this environment are found behind those of the new one.
        lines = [f"import site; site.addsitedir({place!r})" for place in site.getsitepackages()]
        (packages / "beneath.pth").write_text("\n".join(lines) + "\n")
        try:
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{name}=={version}"],
                check=True,
                capture_output=True,
                timeout=INSTALL_LIMIT_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise UnavailableError from error
        yield python.with_name(name)


def tune(command: Path, reference: str) -> tuple[Advice | None, float]:
    """`loadtune tune` with its defaults, on the CPU: its advice, None where it has none, and the wall time in seconds.

    Raises RuntimeError, with its last words, where it does not get to its report.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PEER_REFERENCE": reference, "CUDA_VISIBLE_DEVICES": ""}
    with TemporaryDirectory() as folder:
        # Its report and charts go to the working directory, and the workload's folder to the front of its path.
        workload = Path(shutil.copy(WORKLOAD, folder))
        began_s = time.monotonic()
        done = subprocess.run(
            [command, "tune", workload.name],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
        )
        wall_s = time.monotonic() - began_s
    if DONE not in done.stdout:
        raise RuntimeError(f"loadtune ended without a report: {(done.stdout + done.stderr)[-500:]}")
    return advice_in(done.stdout), wall_s


def advice_in(output: str) -> Advice | None:
    """The advice in what `loadtune tune` printed; None where it advises nothing."""
    found = BEST.search(output)
    if found is None:
        return None
    parts = [part.partition("=") for part in found["label"].split(", ")]
    return Advice(found["label"], float(found["ratio"]), {name: value for name, _, value in parts})


def advised_script(advice: Advice, workload: WorkloadFacts, device: str = "cpu") -> str:
    """The plain training with what loadtune advises, but for its batch size, which is the workload's."""
    codes = {"loadtune": {advice.label: places(advice.knobs, device)}}
    return script(codes, {"loadtune": advice.label}, workload=workload, device=device)


def advised_batch_size(advice: Advice, batch_size: int | None) -> int | None:
    """Samples per step that it advises."""
    return int(advice.knobs["bs"]) if "bs" in advice.knobs else batch_size


def places(knobs: Knobs, device: str) -> dict[str, str]:
    """Place to the lines of plain PyTorch that do as the knobs say; the batch size apart. Raises ValueError for a knob
    that this loadtune has not."""
    unknown = set(knobs) - {
        "workers", "prefetch", "persistent", "pin", "bs", "threads", "compiled", "amp", "non_blocking"
    }  # fmt: skip
    if unknown:
        raise ValueError(f"loadtune {VERSION} has no knob {', '.join(sorted(unknown))}")
    loader = {
        "workers": f"num_workers={knobs.get('workers')}",
        "prefetch": f"prefetch_factor={knobs.get('prefetch')}",
        "persistent": "persistent_workers=True",
        "pin": "pin_memory=True",
    }
    found = {"loader_arguments": ", ".join(text for name, text in loader.items() if name in knobs)}
    if "threads" in knobs:
        found["setup"] = f"torch.set_num_threads({knobs['threads']})"
    if "compiled" in knobs:
        found["model"] = "model = torch.compile(model)"
    if "amp" in knobs:
        # The types that loadtune's own trial runs with.
        kind = device.partition(":")[0]
        found["loss_context"] = f'torch.autocast("{kind}", dtype=torch.{"bfloat16" if kind == "cpu" else "float16"})'
    if "non_blocking" in knobs:
        found["copy_arguments"] = "non_blocking=True"
    return found
