"""Writes into the working folder: model.pt every 50 steps, and a log that grows."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)
args = parser.parse_args()

model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
optimizer = torch.optim.Adam(model.parameters())
for step in range(args.steps):
    optimizer.zero_grad()
    loss = model(torch.randn(64, 32)).pow(2).mean()
    loss.backward()
    optimizer.step()
    if step % 50 == 49:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "model.pt")
        with open("train.log", "a") as log:
            log.write(f"{step} {loss.item():.4f}\n")
