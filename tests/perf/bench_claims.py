"""The claims of `test_claims.py`, measured by the project's own pytest plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from perftool.pytest_plugin import HEADLINE, UNDECIDED
from tests.perf.table import Row, Table
from tests.perf.trials import HERE

TITLE = "What the scenarios claim of the reference trainings"

CLAIMS = HERE / "test_claims.py"
QUICK = "test_loader_workers_do_not_pay_on_data_in_memory"


def run(quick: bool) -> Table:
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "--perf", "--perf-out", folder, f"--junitxml={results}", str(CLAIMS)]
        done = subprocess.run([*command, *(["-k", QUICK] if quick else [])], capture_output=True, text=True)
        if not results.exists():
            raise RuntimeError(done.stdout + done.stderr)
        tests = ElementTree.parse(results).iter("testcase")
    return Table(
        ["claim", "outcome", "measured"],
        [_row(test) for test in tests],
        ["Target: no claim fails. One that the noise of the moment leaves open is undecided, and is neither."],
    )


def _row(test: ElementTree.Element) -> Row:
    properties = {one.get("name"): one.get("value") for one in test.iter("property")}
    claim = str(test.get("name")).removeprefix("test_").replace("_", " ")
    missed = [one for tag in ("failure", "error") for one in test.iter(tag)]
    left = [str(one.get("message")) for one in test.iter("skipped")]
    if missed:
        outcome, reached = "failed", False
    elif left:
        outcome, reached = ("undecided" if any(UNDECIDED in one for one in left) else "not measured"), None
    else:
        outcome, reached = "holds", True
    told = properties.get(HEADLINE) or next((str(one.get("message")) for one in missed), "") or ", ".join(left)
    return Row([claim, outcome, " ".join(told.split())], reached)
