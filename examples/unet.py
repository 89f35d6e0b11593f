"""A U-Net that finds shapes in images: cross entropy and dice, validation several times within an epoch, checkpoints.

python unet.py --epochs 1 --amp
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, random_split


class Shapes(Dataset):
    """Images of 3x64x64 with a disc and a box on noise, and the class of each pixel: none, disc or box."""

    def __init__(self, n, side=64):
        draw = torch.Generator().manual_seed(0)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        middle = torch.randint(12, side - 12, (n, 4, 1, 1), generator=draw)
        size = torch.randint(6, 12, (n, 2, 1, 1), generator=draw)
        disc = (x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2 < size[:, 0] ** 2
        box = ((x - middle[:, 2]).abs() < size[:, 1]) & ((y - middle[:, 3]).abs() < size[:, 1])
        self.masks = torch.where(box, 2, disc.long())
        colours = torch.tensor([[90.0, 100, 110], [140, 100, 90], [100, 140, 120]])
        noise = torch.randn(n, side, side, 3, generator=draw) * 30
        self.images = (colours[self.masks] + noise).clamp(0, 255).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index].permute(2, 0, 1).float() / 255, "mask": self.masks[index]}


class DoubleConv(nn.Sequential):
    def __init__(self, inputs, outputs):
        layers = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
        super().__init__(*layers)


class UNet(nn.Module):
    def __init__(self, channels, classes, width, use_checkpointing=False):
        super().__init__()
        widths = [width, width * 2, width * 4]
        self.use_checkpointing = use_checkpointing
        self.first = DoubleConv(channels, width)
        self.downs = nn.ModuleList(DoubleConv(w, w * 2) for w in widths[:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(w * 2, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merges = nn.ModuleList(DoubleConv(w * 2, w) for w in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, classes, 1)

    def run(self, block, x):
        return checkpoint(block, x, use_reentrant=False) if self.use_checkpointing else block(x)

    def forward(self, x):
        x = self.run(self.first, x)
        passed = []
        for down in self.downs:
            passed.append(x)
            x = self.run(down, F.max_pool2d(x, 2))
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = self.run(merge, torch.cat([passed.pop(), up(x)], dim=1))
        return self.last(x)


def dice(chances, masks, classes):
    """How well the classes after the first overlap, from 0 to 1; chances (n, classes, h, w), masks (n, h, w)."""
    truth = F.one_hot(masks, classes).permute(0, 3, 1, 2)[:, 1:].float()
    found = chances[:, 1:]
    both = 2 * (found * truth).sum(dim=(0, 2, 3))
    return ((both + 1e-6) / (found.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3)) + 1e-6)).mean()


@torch.inference_mode()
def evaluate(model, loader, device, amp):
    model.eval()
    score = 0.0
    with torch.autocast(device.type, enabled=amp):
        for batch in loader:
            best = model(batch["image"].to(device)).argmax(dim=1)
            found = F.one_hot(best, 3).permute(0, 3, 1, 2).float()
            score += dice(found, batch["mask"].to(device), 3).item()
    model.train()
    return score / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", "-e", type=int, default=5)
    parser.add_argument("--batch-size", "-b", type=int, default=4)
    parser.add_argument("--learning-rate", "-l", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--validation", "-v", type=float, default=10.0, help="percent of the images")
    parser.add_argument("--validate-every", type=int, default=40, help="batches")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--use-checkpointing", action="store_true", help="less memory, more time")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = Shapes(args.images)
    n_val = int(len(dataset) * args.validation / 100)
    train_set, val_set = random_split(dataset, [len(dataset) - n_val, n_val], torch.Generator().manual_seed(0))
    train_loader = DataLoader(train_set, shuffle=True, batch_size=args.batch_size, num_workers=0)
    val_loader = DataLoader(val_set, batch_size=args.batch_size, num_workers=0, drop_last=True)

    model = UNet(3, 3, args.width, args.use_checkpointing).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=args.learning_rate, weight_decay=1e-8, foreach=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=5)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")
    criterion = nn.CrossEntropyLoss()

    step, seconds = 0, 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        losses, began = [], time.perf_counter()
        for batch in train_loader:
            images = batch["image"].to(device, memory_format=torch.channels_last)
            masks = batch["mask"].to(device)
            with torch.autocast(device.type, enabled=args.amp):
                scores = model(images)
                loss = criterion(scores, masks) + 1 - dice(scores.float().softmax(dim=1), masks, 3)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            step += 1
            losses.append(loss.item())

            if step % args.validate_every == 0:
                seconds += time.perf_counter() - began
                score = evaluate(model, val_loader, device, args.amp)
                scheduler.step(score)
                recent = losses[-args.validate_every :]
                print(f"step {step} mean loss {sum(recent) / len(recent):.4f} validation dice {score:.4f}")
                began = time.perf_counter()
        seconds += time.perf_counter() - began
        print(f"epoch {epoch} mean loss {sum(losses) / len(losses):.4f}")
        Path("checkpoints").mkdir(exist_ok=True)
        torch.save(model.state_dict(), f"checkpoints/checkpoint_epoch{epoch}.pth")
    print(f"{step} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
