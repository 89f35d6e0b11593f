"""A recurrent network that continues waves, fitted by L-BFGS: each optimizer step calls its closure many times.

python lbfgs_series.py --steps 10
"""

import argparse
import time

import torch
from torch import nn


class Sequence(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.cell = nn.GRUCell(1, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, series, future=0):
        """(n, length) to the next value after each, and after `future` more; (n, length + future)."""
        state, outputs = None, []
        for value in series.split(1, dim=1):
            state = self.cell(value, state)
            outputs.append(self.out(state))
        for _ in range(future):
            state = self.cell(outputs[-1], state)
            outputs.append(self.out(state))
        return torch.cat(outputs, dim=1)


def waves(series, length):
    """Sums of two sine waves under noise, of phases and periods of their own; (series, length) doubles."""
    draw = torch.Generator().manual_seed(2)
    phase, other, period = torch.rand(3, series, 1, generator=draw, dtype=torch.float64)
    at = torch.arange(length)
    clean = (torch.sin((at + phase * 40) / (1 + 2 * period)) + torch.sin((at + other * 40) / (3 + 6 * phase))) / 2
    return clean + 0.1 * torch.randn(clean.shape, generator=draw, dtype=torch.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer")
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--length", type=int, default=25)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.5)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = waves(args.series, args.length)
    inputs, targets = data[3:, :-1], data[3:, 1:]
    test_inputs, test_targets = data[:3, :-1], data[:3, 1:]
    model = Sequence(args.hidden).double()
    criterion = nn.MSELoss()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=args.lr)  # needs all of the data at once

    began = time.perf_counter()
    calls = 0
    for step in range(args.steps):

        def closure():
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        with torch.no_grad():
            future = model(test_inputs, future=args.length)
            test = criterion(future[:, : args.length - 1], test_targets)
        print(f"step {step} closures {calls} loss: {loss.item():.8f} test loss: {test.item():.8f}")
    print(f"{args.steps} steps in {time.perf_counter() - began:.2f} s")
    torch.save(future, "continued.pt")


if __name__ == "__main__":
    main()
