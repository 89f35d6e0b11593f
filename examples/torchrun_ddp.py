"""Two processes train one model together: DistributedDataParallel, gloo on CPUs and nccl on GPUs.

torchrun --nproc-per-node 2 torchrun_ddp.py --epochs 2
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def spirals(n, classes):
    """Points on the arms of a spiral with some more columns of noise, (n, 32), and their arm."""
    draw = torch.Generator().manual_seed(0)
    arm = torch.randint(classes, (n,), generator=draw)
    along = torch.rand(n, generator=draw)
    angle = along * 4 + arm * 6.28 / classes
    points = torch.stack([along * angle.cos(), along * angle.sin()], dim=1)
    return TensorDataset(torch.cat([points, torch.randn(n, 30, generator=draw) * 0.1], dim=1), arm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--samples", type=int, default=12_800)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--save", default="checkpoint.pt")
    args = parser.parse_args()

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)
    dataset = spirals(args.samples, classes=5)
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=args.batch_size, sampler=sampler)
    layers = [nn.Linear(32, args.width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(args.width, args.width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(args.width, 5)).to(device)
    model = DistributedDataParallel(model, device_ids=[local_rank] if cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    began = time.perf_counter()
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for points, arms in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(points.to(device)), arms.to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            mean = total.item() / len(loader) / dist.get_world_size()
            print(f"epoch {epoch} loss {mean:.4f}", flush=True)
            torch.save(model.module.state_dict(), args.save)
        dist.barrier()
    if rank == 0:
        print(f"{args.epochs * len(loader)} steps in {time.perf_counter() - began:.2f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
