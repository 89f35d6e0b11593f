"""Its loss grows to inf and nan within some steps, and it trains on."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)
args = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
for step in range(args.steps):
    optimizer.zero_grad()
    loss = (model(torch.randn(64, 32)) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    if step % 500 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"done, loss {loss.item():.4f}")
