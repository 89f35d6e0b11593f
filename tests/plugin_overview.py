"""What torch-tb-profiler says of the runs in a folder, by its HTTP routes: `python -m tests.plugin_overview LOGDIR`.

In a process of its own, since the plugin starts threads that never end.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

LIMIT_S = 120.0
EVERY_S = 0.05


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

    deadline_s = time.monotonic() + LIMIT_S
    while (found := get("/runs"))["loading"] or not found["runs"]:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the plugin loaded {found} only")
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
