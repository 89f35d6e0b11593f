"""Scripts in the styles that real ones have, where their hooks would have seen what, and the settings to write."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from msgspec.structs import replace

from perftool.analysis.handover import Codes
from perftool.patch.make import make
from perftool.records import Outputs, Patch, Settings, Site, SiteKind
from perftool.scenario import Context, discover
from tests.measure.fakes import MACHINE, WORKLOAD

ROOT = "/home/me/project"
CONTEXT = Context(
    machine=MACHINE,
    workload=replace(
        WORKLOAD, optimizer_options={"foreach": None, "fused": None, "capturable": False}, tensor_dataset=True
    ),
)
CODES: Codes = {
    name: {value: one.lines(value, CONTEXT) for value in {*one.values(CONTEXT), one.default(CONTEXT)}}
    for name, one in discover().items()
} | {"--lr": {"0.1": {"command": "--lr=0.1"}}, "malloc": {"on": {"environment": "MALLOC_TRIM_THRESHOLD_=1"}}}


@dataclass(frozen=True)
class Seen:
    """A place that the hook saw: in the first line that has this pattern."""

    kind: SiteKind
    at: str
    callee: str = ""
    outputs: Outputs = "tensor"
    framework: str | None = None
    file: str = "train.py"


@dataclass(frozen=True)
class Sample:
    """A script, what was seen of it, and what to write."""

    text: str
    seen: tuple[Seen, ...]
    settings: Settings
    files: dict[str, str] = field(default_factory=dict)  # others than train.py

    @property
    def all_files(self) -> dict[str, str]:
        return {"train.py": self.text, **self.files}

    def sites(self, files: dict[str, str] | None = None) -> list[Site]:
        """The places, in these texts."""
        return [
            Site(kind="main", file=f"{ROOT}/train.py", line=1),
            *(site_of(one, files or self.all_files) for one in self.seen),
        ]

    def patch(self, settings: Settings | None = None, files: dict[str, str] | None = None) -> Patch:
        texts = {f"{ROOT}/{name}": text for name, text in (files or self.all_files).items()}
        return make(self.settings if settings is None else settings, CODES, self.sites(files), texts.__getitem__, ROOT)


def site_of(seen: Seen, files: dict[str, str]) -> Site:
    """The line that has the text of a place, after the patch as before."""
    lines = files[seen.file].splitlines()
    number = next(number for number, line in enumerate(lines, 1) if re.search(seen.at, line))
    return Site(
        kind=seen.kind, file=f"{ROOT}/{seen.file}", line=number, callee=seen.callee, outputs=seen.outputs,
        framework=seen.framework,
    )  # fmt: skip


PLAIN = Sample(
    text="""\
#!/usr/bin/env python
# The reference of all: a plain script.
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)

inputs   = torch.randn(64, 8)  # aligned by hand
targets = torch.randn(64, 1)
loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        # the forward pass
        output = model(x)  # of a batch
        loss = nn.functional.mse_loss(output, y)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
""",
    seen=(
        Seen("loader", "loader = ", "DataLoader"),
        Seen("model", "model = ", "Sequential"),
        Seen("optimizer", "optimizer = ", "Adam"),
        Seen("model_call", r"model\(x\)", "model"),
    ),
    settings={
        "amp": "bf16",
        "batch_gather": "on",
        "malloc_retention": "on",
        "optimizer_kernel": "fused",
        "thp": "on",
        "torch_compile": "default",
    },
)

ARGPARSE = Sample(
    text='''\
"""Trains on options."""

from __future__ import annotations

import argparse
import ctypes
import os

import torch
from torch import nn, optim
from torch.utils.data import DataLoader

from data import Rows

LIMIT = 10


def train(args, model, loader, optimizer):
    model.train()
    for i, (x, y) in enumerate(loader):
        x, y = x.to(args.device), y.to(args.device)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    loader = DataLoader(Rows(), 32, True, None, None, 4)
    tests = DataLoader(Rows(), 32)
    model = nn.Linear(8, 2).to(args.device)
    optimizer = optim.SGD(
        model.parameters(),
        lr=0.1,  # found by trying
        foreach=None
    )
    for _ in range(LIMIT):
        train(args, model, loader, optimizer)


if __name__ == "__main__":
    main()
''',
    seen=(
        Seen("loader", "loader = ", "DataLoader"),
        Seen("optimizer", "optimizer = ", "SGD"),
        Seen("model", "model = ", "Linear"),
        Seen("model_call", r"model\(x\)", "model"),
    ),
    settings={
        "amp": "bf16",
        "dataloader_workers": "2",
        "malloc_retention": "on",
        "optimizer_kernel": "fused",
        "pinned_memory": "on",
        "thp": "on",
        "threads": "1",
        "torch_compile": "default",
    },
    files={"data.py": "class Rows: ...\n"},
)

METHODS = Sample(
    text="""\
from torch import nn
from torch.optim import AdamW as Optimizer
from torch.utils.data import DataLoader as Loader


class Trainer:
	def __init__(self, data):
		self.net = nn.Linear(8, 8)
		self.loader = Loader(data,
			batch_size=4,
			shuffle=True,
		)
		self.optimizer = Optimizer(self.net.parameters())

	def forward(self, x):
		return self.net(x)

	def loss(self, x, y):
		out = self.net(x).view(-1)
		total = (out - y).square().mean() + self.net(
			x,
		).abs().mean()
		return total
""",
    seen=(
        Seen("loader", "self.loader = ", "DataLoader"),
        Seen("optimizer", "self.optimizer = ", "AdamW"),
        Seen("model", "self.net = ", "Linear"),
        Seen("model_call", r"self\.net\(x\)", "net"),
        Seen("model_call", r"out = self", "net"),
        Seen("model_call", r"self\.net\($", "net"),
    ),
    settings={"amp": "bf16", "dataloader_workers": "2", "optimizer_kernel": "foreach", "torch_compile": "default"},
)

GAN = Sample(
    text="""\
import torch
import torch.nn as nn

def build(size):
    return nn.Linear(size, 1)

netG, netD = nn.Linear(4, 8), build(8)
criterion = nn.BCEWithLogitsLoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999), fused = False)
ones, zeros = torch.ones(6, 1), torch.zeros(6, 1)
for step in range(3):
    optimizerD.zero_grad()
    fake = netG(torch.randn(6, 4))
    lossD = criterion(netD(torch.randn(6, 8)), ones) + criterion(netD(fake.detach()), zeros)
    lossD.backward()
    optimizerD.step()
    optimizerG.zero_grad()
    lossG = criterion(netD(fake), ones)
    lossG.backward()
    optimizerG.step()
""",
    seen=(
        Seen("optimizer", "optimizerD = ", "Adam"),
        Seen("optimizer", "optimizerG = ", "Adam"),
        Seen("model", r"nn\.Linear\(size", "Linear"),
        Seen("model_call", "fake = netG", "netG"),
        Seen("model_call", r"netD\(torch", "netD"),
        Seen("model_call", r"netD\(fake\.detach", "netD"),
        Seen("model_call", r"netD\(fake\)", "netD"),
    ),
    settings={"amp": "bf16", "optimizer_kernel": "fused", "torch_compile": "default"},
)

TUPLES = Sample(
    text="""\
import torch
try:
    import tqdm
except ImportError:
    tqdm = None
import numpy as np


def step(model, batch, optimizer):
    reconstruction, mean, _ = model(
        batch,  # all of it
        sample=True,
    )
    loss = (reconstruction - batch).square().mean() + mean.square().mean()
    loss.backward()
    optimizer.step()


def recurrent(model, batch, hidden):
    output, hidden = model(batch, hidden)
    return output.mean(), hidden


def language(model, batch):
    return model(**batch).loss
""",
    seen=(
        Seen("model_call", "reconstruction, mean, _", "model", outputs="tensors"),
        Seen("model_call", "output, hidden = ", "model", outputs="other"),
        Seen("model_call", "return model", "model", outputs="other"),
    ),
    settings={"amp": "bf16", "threads": "1"},
)


REFUSED = Sample(
    text="""\
import torch
from torch.utils.data import DataLoader, TensorDataset

options = {"num_workers": 1}
loader = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2, **options)
make = getattr(torch.optim, "Adam")
optimizer = make([torch.ones(2)], torch.tensor(0.1))
model = torch.nn.Linear(2, 1)
forward = lambda batch: model(batch)
""",
    seen=(
        Seen("loader", "loader = ", "DataLoader"),
        Seen("optimizer", "optimizer = ", "Adam"),
        Seen("model_call", "lambda", "model"),
    ),
    settings={
        "--lr": "0.1",
        "amp": "bf16",
        "batch_gather": "on",
        "dataloader_workers": "2",
        "gc_policy": "freeze",
        "malloc": "on",
        "optimizer_kernel": "fused",
        "thp": "on",
        "torch_compile": "default",
        "unheard_of": "on",
    },
)

LIGHTNING = Sample(
    text="""\
import lightning
import torch


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def training_step(self, batch, _):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


trainer = lightning.Trainer(max_epochs=1)
trainer.fit(Module(), datamodule=torch.load("rows.pt"))
""",
    seen=(
        Seen("loader", r"trainer\.fit", "DataLoader", framework="lightning"),
        Seen("optimizer", r"optim\.Adam", "Adam", framework="lightning"),
        Seen("model", r"trainer\.fit", "Module", framework="lightning"),
        Seen("model_call", r"trainer\.fit", "Module", framework="lightning"),
    ),
    settings={"amp": "bf16", "dataloader_workers": "2", "optimizer_kernel": "fused", "torch_compile": "default"},
)

TRAINER = Sample(
    text="""\
from transformers import Trainer, TrainingArguments

from mine import dataset, model

trainer = Trainer(model=model, args=TrainingArguments(output_dir="out"), train_dataset=dataset)
trainer.train()
""",
    seen=(
        Seen("loader", r"\.train\(\)", "DataLoader", framework="transformers"),
        Seen("optimizer", r"\.train\(\)", "AdamW", framework="transformers"),
        Seen("model_call", r"\.train\(\)", "Model", "other", framework="transformers"),
    ),
    settings={
        "amp": "bf16",
        "dataloader_workers": "2",
        "optimizer_kernel": "fused",
        "pinned_memory": "on",
        "threads": "1",
        "torch_compile": "max-autotune",
    },
)

ACCELERATE = Sample(
    text="""\
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from mine import Net, rows

accelerator = Accelerator()
loader = DataLoader(rows, batch_size=4, num_workers=1)
optimizer = torch.optim.Adam(Net().parameters())
model, optimizer, loader = accelerator.prepare(Net(), optimizer, loader)
for batch in loader:
    accelerator.backward(model(batch))
    optimizer.step()
""",
    seen=(
        Seen("loader", "loader = DataLoader", "DataLoader", framework="accelerate"),
        Seen("loader", "prepare", "DataLoader", framework="accelerate"),
        Seen("optimizer", r"optim\.Adam", "Adam", framework="accelerate"),
        Seen("model_call", r"backward", "Net", framework="accelerate"),
    ),
    settings={"amp": "bf16", "dataloader_workers": "2", "optimizer_kernel": "fused", "torch_compile": "default"},
)

SAMPLES = {
    "plain": PLAIN,
    "argparse": ARGPARSE,
    "methods": METHODS,
    "gan": GAN,
    "tuples": TUPLES,
    "refused": REFUSED,
    "lightning": LIGHTNING,
    "transformers": TRAINER,
    "accelerate": ACCELERATE,
}
