"""Goes to a folder that it makes, and writes ./log.txt there."""

import argparse
import os
import tempfile

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)
args = parser.parse_args()

os.chdir(tempfile.mkdtemp(prefix="changes-folder-"))
print(f"now in {os.getcwd()}")
model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
optimizer = torch.optim.Adam(model.parameters())
for step in range(args.steps):
    optimizer.zero_grad()
    loss = model(torch.randn(64, 32)).pow(2).mean()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        with open("log.txt", "a") as log:
            log.write(f"{step} {loss.item():.4f}\n")
