"""A training that times blocks of its steps by its own clock, one block for each line on stdin. Knows no perftool."""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16, help="of a block")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = 64 * 200
    loader = DataLoader(TensorDataset(torch.randn(rows, 64), torch.randn(rows, 1)), batch_size=64, shuffle=True)
    width = arguments.width
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    steps, began_ns, line = 0, 0, ""
    while True:
        for inputs, targets in loader:
            if steps % (arguments.steps + 1) == 0:  # the first step of each is dropped
                print(time.perf_counter_ns() - began_ns, flush=True)
                line = sys.stdin.readline()
                if not line:
                    return
            if steps % (arguments.steps + 1) == 1:
                began_ns = time.perf_counter_ns()
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1


if __name__ == "__main__":
    main()
