"""A GradScaler on the CPU that skips a step whenever gradients are infinite, as every 37th is made here."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)
args = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
optimizer = torch.optim.Adam(model.parameters())
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=30)
skipped = 0
for step in range(args.steps):
    inputs = torch.randn(64, 32)
    if step % 37 == 20:
        inputs[0, 0] = float("inf")
    optimizer.zero_grad()
    loss = (model(inputs) - 1).pow(2).mean()
    scaler.scale(loss).backward()
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped += scaler.get_scale() < before
    if step % 500 == 0:
        print(f"step {step} loss {loss.item():.4f} skipped {skipped}")
print(f"done, skipped {skipped} of {args.steps}")
