"""Settings over a script that sets the same itself, and what is told where they are not in force."""

from __future__ import annotations

import atexit
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from perftool.plan import Plan
from perftool.probes.modules import lies_channels_last
from perftool.scenario import discover, plan_of
from perftool.script import record as record_module
from perftool.script.under import TOLD_AFTER, Asked, Under
from scenarios.activation_checkpointing import Again

pytestmark = pytest.mark.usefixtures("put_back")


@pytest.fixture
def threads() -> Iterator[int]:
    """That torch has, and has afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)
    torch.set_float32_matmul_precision("highest")


def asked(**settings: str) -> tuple[Plan, list[Asked]]:
    scenarios = discover()
    plans = {name: plan_of(None, {name: value}, scenarios, device="cpu", seed=0) for name, value in settings.items()}
    found = [Asked(name, value, plans[name], scenarios[name].present) for name, value in settings.items()]
    return plan_of(None, settings, scenarios, device="cpu", seed=0), found


def under(**settings: str) -> None:
    found = Under(*asked(**settings))
    atexit.unregister(found._ended)


class Steps:
    """A training."""

    def __init__(self, *, fused: bool = False) -> None:
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=fused)

    def make(self, steps: int) -> None:
        for _ in range(steps):
            self.model(torch.ones(1, 2)).sum().backward()
            self.optimizer.step()


@pytest.mark.usefixtures("threads")
def test_what_the_script_sets_before_it_trains_does_not_stand(capsys: pytest.CaptureFixture[str]) -> None:
    under(threads="3", matmul_precision="medium")
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    Steps().make(TOLD_AFTER)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "medium")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("threads")
def test_what_the_script_sets_while_it_trains_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    under(threads="3", matmul_precision="medium")
    training = Steps()
    training.make(2)
    torch.set_num_threads(2)
    training.make(TOLD_AFTER)
    assert capsys.readouterr().err == (
        "perftool: threads=3 is not in force: the script itself has set 2 since its training began; take that out of "
        "it\n"
    )


@pytest.mark.usefixtures("threads")
def test_of_a_recording_likewise(tmp_path_factory: pytest.TempPathFactory) -> None:
    plan, _ = asked(threads="3")
    recorder = record_module.Recorder(str(tmp_path_factory.mktemp("recorded")), plan)
    recorder.begin()
    torch.set_num_threads(2)
    Steps().make(1)
    recorder.end()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("kernel", ["for-loop", "foreach", "fused"])
def test_a_scaler_knows_the_kernel_before_the_first_step(kernel: str) -> None:
    under(optimizer_kernel=kernel)
    training = Steps(fused=kernel != "fused")
    before = training.model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(training.model(torch.ones(1, 2)).sum()).backward()
    scaler.step(training.optimizer)
    assert not training.model.weight.equal(before)
    assert training.optimizer.param_groups[0]["fused"] == (kernel == "fused")


@pytest.mark.parametrize("model", ["pictures", "sentences", "plain"])
def test_what_changes_a_module_is_laid_over_it_or_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    under(channels_last="on", activation_checkpointing="on")
    nets = {
        "pictures": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh()),
        "sentences": nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))),
        "plain": nn.Linear(8, 8),
    }
    net, before = nets[model], Again.runs
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(TOLD_AFTER):
        net(torch.ones(2, 3, 8, 8)).sum().backward()
        optimizer.step()
    told = capsys.readouterr().err
    assert ("channels_last=on is not in force" in told) == (model != "pictures")
    assert ("activation_checkpointing=on is not in force" in told) == (model == "plain")
    assert (Again.runs > before) == (model != "plain")


def test_state_of_a_checkpoint_follows_the_layout_that_its_parameters_get() -> None:
    under(channels_last="on", optimizer_kernel="fused")
    found = []
    for laid in (False, True):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3)
        state = torch.optim.Adam(net.parameters())
        first = nn.functional.conv2d(torch.randn(2, 3, 5, 5), net.weight, net.bias).square().sum()
        first.backward()  # type: ignore[no-untyped-call]
        state.step()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        optimizer.load_state_dict(state.state_dict())
        state.zero_grad()
        images = torch.randn(2, 3, 5, 5)
        output = net(images) if laid else nn.functional.conv2d(images, net.weight, net.bias)
        output.square().sum().backward()
        optimizer.step()
        found.append(net.weight.detach().contiguous())
        assert lies_channels_last(net.weight) == laid
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
