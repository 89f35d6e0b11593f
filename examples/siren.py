"""A network of sines that learns one image: all of its pixels in each step, a summary every so many.

It asks before it writes over an earlier run's folder.

python siren.py --num-steps 200 --experiment-name first
"""

import argparse
import math
import os
import shutil
import time

import torch
from torch import nn


class Sine(nn.Module):
    def __init__(self, inputs, outputs, first=False, omega=30.0):
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


def image(side):
    """Places in -1 to 1, (side * side, 2), and the brightness there, (side * side, 1)."""
    at = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(at, at, indexing="ij")
    brightness = torch.sin(12 * x * y) * torch.exp(-(x**2)) + 0.5 * (torch.hypot(x - 0.3, y + 0.2) < 0.4)
    return torch.stack([x, y], dim=-1).view(-1, 2), brightness.view(-1, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logging-root", default="logs")
    parser.add_argument("--experiment-name", default="siren")
    parser.add_argument("--num-steps", type=int, default=1_500)
    parser.add_argument("--steps-til-summary", type=int, default=100)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()

    folder = os.path.join(args.logging_root, args.experiment_name)
    if os.path.exists(folder):
        if input(f"{folder} exists. Overwrite? [y/n] ") != "y":
            raise SystemExit("nothing done")
        shutil.rmtree(folder)
    os.makedirs(folder)

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    places, truth = (part.to(device) for part in image(args.side))
    layers = [Sine(2, args.hidden, first=True), *(Sine(args.hidden, args.hidden) for _ in range(3))]
    model = nn.Sequential(*layers, nn.Linear(args.hidden, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    began = time.perf_counter()
    for step in range(args.num_steps):
        output = model(places)
        loss = ((output - truth) ** 2).mean()
        if step % args.steps_til_summary == 0:
            print(f"Step {step}, Total loss {loss.item():.6f}")
            torch.save(output.detach().view(args.side, args.side).cpu(), f"{folder}/image_{step:05d}.pt")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{args.num_steps} steps in {time.perf_counter() - began:.2f} s")
    torch.save(model.state_dict(), f"{folder}/model_final.pt")


if __name__ == "__main__":
    main()
