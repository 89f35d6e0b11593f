"""Has children before it trains: one forked that stays, one forked that ends, and a multiprocessing.Process."""

import argparse
import multiprocessing
import os
import signal
import time

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20_000)


def prepare(done):
    """What a preprocessing worker does, with an optimizer of its own."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (weight - 1).pow(2).sum().backward()
        optimizer.step()
    done.set()


def main():
    args = parser.parse_args()
    heartbeat = os.fork()
    if heartbeat == 0:
        while os.getppid() != 1:
            time.sleep(0.2)
        os._exit(0)
    brief = os.fork()
    if brief == 0:
        os._exit(0)
    os.waitpid(brief, 0)
    done = multiprocessing.Event()
    child = multiprocessing.Process(target=prepare, args=(done,))
    child.start()
    child.join()
    assert done.is_set()

    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(args.steps):
        optimizer.zero_grad()
        loss = model(torch.randn(64, 32)).pow(2).mean()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    os.kill(heartbeat, signal.SIGTERM)
    os.waitpid(heartbeat, 0)


if __name__ == "__main__":
    main()
