"""Two ranks that the script forks itself, which meet at a port that it names; no variable tells their numbers."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

RANKS = 2


def work(rank):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="12355")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20_000):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()


if __name__ == "__main__":
    mp.start_processes(work, nprocs=RANKS, start_method="fork")
