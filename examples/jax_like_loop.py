"""A loop of pure functions: parameters in, gradients out, an update by hand; neither `backward` nor an optimizer.

Nobody sees from outside where a step ends, so the loop says it: `perftool.step()`.

python jax_like_loop.py --steps 200
"""

import argparse
import time
from itertools import pairwise

import torch
from torch.func import grad_and_value

import perftool


def init(sizes):
    """One (weight, bias) for each layer."""
    return [(torch.randn(a, b) * (2 / a) ** 0.5, torch.zeros(b)) for a, b in pairwise(sizes)]


def predict(params, x):
    *hidden, (weight, bias) = params
    for w, b in hidden:
        x = torch.relu(x @ w + b)
    return x @ weight + bias


def loss_of(params, x, y):
    return (predict(params, x) - y).square().mean()


def update(params, momenta, gradients, lr, beta):
    """Parameters and momenta after one step of gradient descent."""
    momenta = [
        tuple(beta * m + g for m, g in zip(ms, gs, strict=True)) for ms, gs in zip(momenta, gradients, strict=True)
    ]
    params = [tuple(p - lr * m for p, m in zip(ps, ms, strict=True)) for ps, ms in zip(params, momenta, strict=True)]
    return params, momenta


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--eval-every", type=int, default=500)
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.randn(8_192, 16)
    y = torch.sin(x).sum(dim=1, keepdim=True) * x[:, :1]
    params = init([16, args.width, args.width, 1])
    momenta = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in params]
    loss_and_gradients = grad_and_value(loss_of)

    began = time.perf_counter()
    for i in range(args.steps):
        rows = torch.randint(len(x), (args.batch_size,))
        gradients, loss = loss_and_gradients(params, x[rows], y[rows])
        params, momenta = update(params, momenta, gradients, args.lr, beta=0.9)
        perftool.step()
        if i % args.eval_every == 0:
            print(f"step {i} loss {loss.item():.4f} on all {loss_of(params, x, y).item():.4f}")
    print(f"step {args.steps} loss {loss.item():.4f}")
    print(f"{args.steps} steps in {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
