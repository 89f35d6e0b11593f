"""Real scripts as launches: their turns, and everything that can go wrong with them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from perftool.measure import messages, script_launch, scripted
from perftool.measure.launch import LaunchFailed
from perftool.measure.sandbox import Sandbox
from perftool.measure.script_launch import ScriptLaunch
from perftool.measure.survey import UnusableError
from perftool.records import ModuleFacts, ScriptFacts, Settings, StepRule
from perftool.scenario import discover
from perftool.target import Script

pytestmark = pytest.mark.process

SCRIPTS = Path(__file__).parents[1] / "scripts"
LIMIT_S = 90.0


class Launches:
    """Launches of scripts in one sandbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sandbox: Sandbox | None = None
        self._live: list[ScriptLaunch] = []

    def start(
        self,
        *command: str,
        settings: Settings | None = None,
        facts: ScriptFacts | None = None,
        switched: tuple[str, ...] = (),
    ) -> ScriptLaunch:
        words = (sys.executable, *command) if command[0].endswith(".py") or command[0].startswith("-") else command
        script = Script(command=words, folder=str(self.folder))
        if self._sandbox is None:
            self._sandbox = Sandbox.open(words, self.folder, os.environ)
        spec = messages.LaunchSpec(
            launch=1,
            reference="",
            scenario_files=[],
            settings=settings or {},
            device="cpu",
            seed=0,
            switched=switched,
        )
        launch = scripted.start(spec, {}, script, discover(), facts, self._sandbox)
        self._live.append(launch)
        return launch

    def look(self, *command: str) -> ScriptFacts:
        launch = self.start(*command)
        facts = launch.ask(messages.Look(), LIMIT_S)
        return replace(facts, passed_over=launch.passed_over)

    def close(self) -> None:
        for launch in self._live:
            launch.close()
        if self._sandbox is not None:
            self._sandbox.close()


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    found = Launches(tmp_path)
    yield found
    found.close()


def script(name: str) -> str:
    return str(SCRIPTS / name)


def block_of(launch: ScriptLaunch, steps: int = 5) -> object:
    return launch.ask(messages.Run(round=0, position=0, drop=1, steps=steps), LIMIT_S)


def run_out(launch: ScriptLaunch) -> None:
    for _ in range(2000):
        block_of(launch)


def test_a_script_is_looked_at_and_takes_its_turns(launches: Launches) -> None:
    facts = launches.look(script("mlp.py"))
    assert [one.name for one in facts.optimizers] == ["Adam"]
    assert facts.rule is not None
    assert facts.rule.boundary == "optimizer"
    assert [loader.trains for loader in facts.loaders] == [True]
    settings = {"optimizer_kernel": "fused", "batch_gather": "on", "threads": "1"}
    launch = launches.start(script("mlp.py"), settings=settings, facts=facts)
    started = launch.ask(messages.Start(), LIMIT_S)
    assert started.steps_per_call == 1
    warmed = launch.ask(messages.Warm(steps=20, limit_s=5.0), LIMIT_S)
    assert 0 < len(warmed.step_ns) <= 20
    engaged = launch.ask(messages.Prove(), LIMIT_S).engaged
    assert engaged.ok, engaged.evidence
    block = launch.ask(messages.Run(round=3, position=1, drop=2, steps=7), LIMIT_S)
    assert (block.round, block.position, block.steps) == (3, 1, 7)
    assert block.samples == 7 * facts.loaders[0].batch_size if facts.loaders[0].batch_size else False
    assert len(block.step_ns) == len(block.wait_ns) == 7
    assert sum(block.step_ns) == block.wall_ns
    assert launch.host_bytes()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pictures.py", {"channels_last": "on", "optimizer_kernel": "fused"}),
        ("attention.py", {"activation_checkpointing": "on", "sdpa_backend": "math"}),
    ],
)
def test_a_scripts_modules_are_described_and_changed_in_place(
    launches: Launches, name: str, settings: dict[str, str]
) -> None:
    facts = launches.look(script(name))
    is_attention = name == "attention.py"
    assert facts.modules == ModuleFacts(
        convolution_dims=[] if is_attention else [2],
        block_lists=["blocks"] if is_attention else [],
        chains={} if is_attention else {"": 5},
        attends=is_attention,
    )
    assert facts.changes_buffers != is_attention
    launch = launches.start(script(name), settings=settings, facts=facts)
    launch.ask(messages.Start(), LIMIT_S)
    engaged = launch.ask(messages.Prove(), LIMIT_S).engaged
    assert engaged.ok, engaged.evidence
    stretch = launch.ask(messages.Sustain(calls=7), LIMIT_S)
    assert (stretch.steps, stretch.samples) == (7, 56 if is_attention else 112)
    assert stretch.wall_ns > 0
    assert stretch.energy_mj is None, "a CPU does not tell"


def test_what_its_processes_are_told_is_gone_with_all_else_that_is_temporary(launches: Launches) -> None:
    """Also where perftool is killed."""
    launch = launches.start(script("mlp.py"))
    assert launches._sandbox is not None
    assert launch._folder.is_relative_to(launches._sandbox.root)


def test_nothing_of_it_runs_between_its_blocks(launches: Launches) -> None:
    launch = launches.start(script("mlp.py"), facts=launches.look(script("mlp.py")))
    launch.ask(messages.Start(), LIMIT_S)
    assert launch.kept is not None
    states = {_state(pid) for pid in launch.kept.tree.pids()}
    assert states <= {"T"}


def test_a_settings_that_raises_is_told_as_such(launches: Launches) -> None:
    facts = launches.look(script("mlp.py"))
    launch = launches.start(script("mlp.py"), settings={"threads": "none"}, facts=facts)
    with pytest.raises(LaunchFailed, match="perftool could not get into it: ValueError"):
        launch.ask(messages.Start(), LIMIT_S)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("crash_at_import.py", "training", r"exit code 1 before its first step; last output: .*Error"),
        ("too_short.py", "ended", "the script was over after 6 steps"),
        ("never_steps.py", "training", "the command ended without a step: nothing in it called backward"),
    ],
)
def test_why_there_is_nothing_to_measure(launches: Launches, name: str, kind: str, told: str) -> None:
    with pytest.raises(LaunchFailed, match=told) as failed:
        launches.look(script(name))
    assert failed.value.kind == kind


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("calls_os_exit.py", "died", "ended with exit code 3"),
        ("raises_midway.py", "training", r"ended with exit code 1 after 15\d steps; last output: \w+Error"),
        ("nan_loss.py", "training", "the loss became nan within"),
    ],
)
def test_why_measuring_ends(launches: Launches, name: str, kind: str, told: str) -> None:
    launch = launches.start(script(name), facts=launches.look(script(name)))
    launch.ask(messages.Start(), LIMIT_S)
    with pytest.raises(LaunchFailed, match=told) as failed:
        run_out(launch)
    assert failed.value.kind == kind


@pytest.mark.parametrize(
    "name", ["forks.py", "changes_folder.py", "own_signals.py", "prints_to_closed_pipe.py", "scaler.py", "noseed.py"]
)
def test_scripts_that_are_hard_to_hold(launches: Launches, name: str) -> None:
    facts = launches.look(script(name))
    launch = launches.start(script(name), facts=facts)
    launch.ask(messages.Start(), LIMIT_S)
    launch.ask(messages.Warm(steps=20, limit_s=5.0), LIMIT_S)
    for _ in range(3):
        block_of(launch, 20)
    assert launch.kept is not None
    tree = launch.kept.tree
    launch.close()
    assert not tree.pids()


def test_a_helper_that_makes_steps_is_passed_over(launches: Launches) -> None:
    assert launches.look(script("forks.py")).passed_over == 1


def test_the_last_of_several_optimizers_ends_a_step(launches: Launches) -> None:
    rule = launches.look(script("two_steps_kinds.py")).rule
    assert rule is not None
    assert (rule.boundary, rule.last, rule.every) == ("optimizer", 1, 1)


def test_what_a_script_writes_is_gone(launches: Launches) -> None:
    facts = launches.look(script("writes_checkpoint.py"))
    launch = launches.start(script("writes_checkpoint.py"), facts=facts)
    launch.ask(messages.Start(), LIMIT_S)
    asides: dict[str, int] = {}
    for _ in range(12):
        asides |= launch.ask(messages.Run(round=0, position=0, drop=0, steps=10), LIMIT_S).aside_ns
    launch.close()
    assert list(asides) == [next(iter(asides))]
    assert next(iter(asides)).startswith("checkpoint at writes_checkpoint.py:")
    if launches._sandbox is not None and launches._sandbox.protected:
        assert list(launches.folder.iterdir()) == []


def test_seeds_are_shifted_for_the_losses(launches: Launches) -> None:
    facts = launches.look(script("seeds.py"))
    assert facts.seeded
    launch = launches.start(script("seeds.py"), facts=facts)
    first, second, again = (launch.ask(messages.Train(seed=seed, steps=12), LIMIT_S) for seed in (0, 1, 0))
    assert len(first.losses) == 12
    assert first.losses == again.losses != second.losses


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_a_python_that_hides_is_not_even_started(tmp_path: Path, option: str) -> None:
    hiding = Script(command=(sys.executable, option, script("mlp.py")), folder=str(tmp_path))
    with pytest.raises(UnusableError, match=f"its Python runs with {option}"):
        scripted.survey(hiding, "cpu", 0, LIMIT_S, scripted.Sandboxes(pytest.fail))


def test_a_python_that_hides_behind_a_shell_is_told(launches: Launches) -> None:
    with pytest.raises(LaunchFailed, match=r"python train\.py, without -I, -E or -S"):
        launches.look("bash", "-c", f"{sys.executable} -I {script('mlp.py')} --steps 3; true")


def test_a_module_a_shell_script_and_an_own_sitecustomize(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nos.environ['CHAINED'] = 'yes'\n")
    (tmp_path / "train.py").write_text(
        "import os, runpy, sys\nassert os.environ['CHAINED'] == 'yes'\n"
        "assert not any(place.endswith(os.path.join('script', 'site')) for place in sys.path)\n"
        f"runpy.run_path({script('mlp.py')!r}, run_name='__main__')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{tmp_path}")
    assert launches.look("-m", "train").steps
    assert launches.look("bash", "-c", f"{sys.executable} -m train; true").steps


def _state(pid: int) -> str:
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            break
        time.sleep(0.01)
    return state


def test_two_ranks_take_their_turns_together(launches: Launches) -> None:
    example = str(SCRIPTS.parents[1] / "examples" / "torchrun_ddp.py")
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", example)
    look = launches.start(*command)
    facts = replace(look.ask(messages.Look(), LIMIT_S), ranks=look.ranks)
    look.close()
    assert facts.ranks == 2
    launch = launches.start(*command, facts=facts)
    launch.ask(messages.Start(), LIMIT_S)
    warmed = launch.ask(messages.Warm(steps=20, limit_s=0.001), LIMIT_S)
    assert len(warmed.step_ns) == 20  # whoever stopped earlier would let the other wait for ever
    block = launch.ask(messages.Run(round=0, position=0, drop=1, steps=5), LIMIT_S)
    assert len(block.rank_wall_ns) == len(block.alone_ns) == 2
    assert block.samples == 2 * 5 * (facts.loaders[0].batch_size or 0)
    assert launch.kept is not None
    tree = launch.kept.tree
    launch.close()
    assert not tree.pids()


def test_ranks_that_a_script_forks_itself_meet_apart_from_those_of_another_launch(launches: Launches) -> None:
    look = launches.start(script("forked_ranks.py"))
    facts = look.ask(messages.Look(), LIMIT_S)  # which stands still from here on
    assert look.ranks == 2
    assert not look.others
    launch = launches.start(script("forked_ranks.py"), facts=facts)
    launch.ask(messages.Start(), LIMIT_S)
    block = launch.ask(messages.Run(round=0, position=0, drop=1, steps=5), LIMIT_S)
    assert len(block.rank_wall_ns) == 2


def test_a_survey_counts_the_ranks(tmp_path: Path) -> None:
    sandboxes = scripted.Sandboxes(lambda _: None)
    command = Script(command=(sys.executable, script("forked_ranks.py")), folder=str(tmp_path))
    described, _ = scripted.survey(command, "cpu", 0, LIMIT_S, sandboxes)
    sandboxes.close()
    assert described.workload.script is not None
    assert described.workload.script.ranks == 2


def test_a_process_that_waits_for_another_is_not_left_to_wait(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script_launch, "OTHERS_HELD_S", 0.5)
    assert launches.look(script("in_lockstep.py")).rule == StepRule(boundary="mark")
