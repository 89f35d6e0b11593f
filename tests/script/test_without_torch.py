"""A script that never imports torch is measured by the steps that it marks itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from perftool.measure import messages
from tests.measure.test_script_launch import LIMIT_S, Launches

pytestmark = pytest.mark.process

LOOP = """
import sys, time, perftool
while True:
    time.sleep(0.01)
    assert "torch" not in sys.modules
    perftool.step(samples=5)
"""


def test_it_answers_what_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    launches = Launches(tmp_path)
    try:
        facts = launches.look("loop.py")
        assert (facts.device, facts.torch_version, facts.parameter_count) == ("cpu", "none", 0)
        assert facts.rule is not None
        assert facts.rule.boundary == "mark"
        launch = launches.start("loop.py", facts=facts)
        launch.ask(messages.Start(), LIMIT_S)
        launch.ask(messages.Warm(steps=5, limit_s=LIMIT_S), LIMIT_S)
        assert launch.ask(messages.Prove(), LIMIT_S).engaged.ok
        block = launch.ask(messages.Run(round=0, position=0, drop=1, steps=10), LIMIT_S)
        assert (block.steps, block.samples) == (10, 50)
        launch.ask(messages.Finish(), LIMIT_S)
    finally:
        launches.close()
