"""Has handlers of its own for SIGTERM and SIGCONT, which print and go on."""

import argparse
import signal

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)
args = parser.parse_args()


def tell(number, frame):
    print(f"got {signal.Signals(number).name}, training on", flush=True)


signal.signal(signal.SIGTERM, tell)
signal.signal(signal.SIGCONT, tell)
model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
optimizer = torch.optim.Adam(model.parameters())
for step in range(args.steps):
    optimizer.zero_grad()
    loss = model(torch.randn(64, 32)).pow(2).mean()
    loss.backward()
    optimizer.step()
    if step % 500 == 0:
        print(f"step {step} loss {loss.item():.4f}", flush=True)
