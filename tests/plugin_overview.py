"""What torch-tb-profiler says of the runs in a folder, by its HTTP routes: `python -m tests.plugin_overview LOGDIR`.

`asked` runs that in a process of its own, since the plugin starts threads that never end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTRA = "perftool[tensorboard]"
PROCESS_LIMIT_S = 200
LIMIT_S = 120.0
EVERY_S = 0.05


def available() -> bool:
    """Whether the extra with the plugin is installed."""
    return find_spec("tensorboard") is not None and find_spec("torch_tb_profiler") is not None


def asked(folder: Path) -> dict[str, Any]:
    """Run, by its path within the folder, to its overview and its table of operations."""
    words = [sys.executable, "-m", "tests.plugin_overview", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_LIMIT_S)
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def step_shares(overview: Mapping[str, Any]) -> dict[str, float]:
    """Category to its per cent of the average step."""
    [total] = overview["performance"]
    return {part["name"]: part["extra"] for part in total["children"]}


def overviews(folder: str) -> dict[str, Any]:
    """Run to its overview and its table of operations."""
    from tensorboard.plugins.base_plugin import TBContext
    from torch_tb_profiler.plugin import TorchProfilerPlugin
    from werkzeug.test import Client

    routes = TorchProfilerPlugin(TBContext(logdir=folder)).get_plugin_apps()

    def get(route: str, **query: str) -> Any:
        answer = Client(routes[route]).get(route, query_string=query)
        if answer.status_code != 200:
            raise RuntimeError(f"{route} {query}: {answer.status}")
        return json.loads(answer.get_data())

    # Its own word on whether it still loads is false between the runs that it finds one after the other.
    runs = len({trace.parent for trace in Path(folder).rglob("*.pt.trace.json*")})
    deadline_s = time.monotonic() + LIMIT_S
    while len((found := get("/runs"))["runs"]) < runs:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the plugin loaded {found} of {runs} runs")
        time.sleep(EVERY_S)
    told = {}
    for run in found["runs"]:
        [worker] = get("/workers", run=run, view="Overview")
        query = {"run": run, "worker": worker, "span": "default"}
        told[run] = get("/overview", **query) | {
            "operations": get("/operation/table", **query, group_by="Operation")["data"]
        }
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(overviews(sys.argv[1])))
