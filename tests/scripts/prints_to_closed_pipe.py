"""Prints a lot in each step: for whoever reads its output, or stops to."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=5_000)
parser.add_argument("--bytes", type=int, default=4096, help="printed in each step")
args = parser.parse_args()

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters())
for step in range(args.steps):
    optimizer.zero_grad()
    loss = model(torch.randn(64, 32)).pow(2).mean()
    loss.backward()
    optimizer.step()
    print(f"step {step} loss {loss.item():.4f} ".ljust(args.bytes, "."), flush=True)
