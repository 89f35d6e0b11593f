"""From a command to a patch that applies and trains, with real processes.

The lever is one whose gain no other work on the machine takes away: rows that wait, and processes that wait for them
side by side.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import json

import perftool
from perftool.measure.sandbox import Sandbox

SCRIPT = Path(__file__).parent / "scripts" / "slow_rows.py"


@pytest.mark.process
def test_a_search_ends_with_a_patch_that_applies_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    file = Path(shutil.copy(SCRIPT, project / "train.py"))
    before = file.read_text()
    monkeypatch.chdir(project)
    command = [sys.executable, "train.py"]
    sandbox = Sandbox.open(command, project, {})
    is_covered = sandbox.covers(file)
    sandbox.close()

    summary = perftool.tune(command, only=["dataloader_workers"], budget_s=8.0, out=tmp_path / "out")

    assert file.read_text() == before
    advice = summary.recommendation
    assert advice is not None
    assert advice.patch is not None
    assert advice.settings["dataloader_workers"] in ("1", "2")
    assert (advice.patch.written, advice.patch.unwritten) == (["dataloader_workers"], [])
    assert advice.patch.confirmed == ("confirmed" if is_covered else "not_measured"), advice.patch
    [folder] = (tmp_path / "out").iterdir()
    told = json.decode((folder / "summary.json").read_bytes())["recommendation"]["patch"]
    assert told["file"] == "recommended.patch"
    assert not (folder / "recommended.py").exists()
    subprocess.run(["git", "apply", str(folder / told["file"])], cwd=project, check=True)
    assert f"num_workers={advice.settings['dataloader_workers']}" in file.read_text()
    done = subprocess.run([*command, "--steps", "8"], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("done: 8 steps"), done.stderr
