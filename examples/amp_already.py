"""A training that has been tuned already: bfloat16 autocast, a fused AdamW, set_to_none, channels last, an EMA.

python amp_already.py --epochs 1
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return F.silu(x + self.layers(x))


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), Residual(width), nn.Conv2d(width, width * 2, 3, 2, 1), Residual(width * 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 2, 10),
    )  # fmt: skip


def patches(n, seed):
    """Images of 3x32x32 with one of ten textures."""
    textures = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 4, 4)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=draw)
    return TensorDataset(textures[labels] * 0.4 + torch.randn(n, 3, 32, 32, generator=draw), labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=6_400)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--num-workers", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DataLoader(
        patches(args.samples, 1),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=args.num_workers > 0,
    )
    test_loader = DataLoader(patches(args.samples // 10, 2), batch_size=256)
    model = network(args.width).to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)

    seconds = 0.0
    for epoch in range(args.epochs):
        model.train()
        began = time.perf_counter()
        for i, (images, labels) in enumerate(loader):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(model)
            if i % 50 == 0:
                print(f"epoch {epoch} batch {i} loss {loss.item():.4f}")
        seconds += time.perf_counter() - began

        average.eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            right = sum((average(x.to(device)).argmax(dim=1).cpu() == y).sum().item() for x, y in test_loader)
        print(f"epoch {epoch} accuracy of the average {right / len(test_loader.dataset):.3f}")
    print(f"{args.epochs * len(loader)} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
