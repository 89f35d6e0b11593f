"""A small convolutional network on digits: an epoch of training, one of testing, a scheduler, a model saved at the end.

python mnist_cnn.py --epochs 3
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """Ten shapes of 28x28 bytes, each seen through noise; an item is scaled and normalised when it is asked for."""

    def __init__(self, samples, seed):
        shapes = np.random.default_rng(0).integers(0, 2, (10, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
        draw = np.random.default_rng(seed)
        self.labels = draw.integers(0, 10, samples)
        noise = draw.integers(0, 220, (samples, 28, 28))
        self.images = (shapes[self.labels] * 20 + noise).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index]).unsqueeze(0).float().div(255)
        return image.sub(0.5).div(0.3), int(self.labels[index])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(2304, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, images):
        x = F.dropout(self.features(images).flatten(1), 0.25, self.training)
        x = F.dropout(F.relu(self.head(x)), 0.5, self.training)
        return F.log_softmax(self.out(x), dim=1)


def train_epoch(epoch, model, loader, optimizer, device, log_every):
    model.train()
    for i, (images, labels) in enumerate(loader):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.nll_loss(model(images), labels)
        loss.backward()
        optimizer.step()
        if i % log_every == 0:
            print(f"epoch {epoch} batch {i}/{len(loader)} loss: {loss.item():.4f}")


@torch.no_grad()
def test(model, loader, device):
    model.eval()
    loss, right = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        scores = model(images)
        loss += F.nll_loss(scores, labels, reduction="sum").item()
        right += (scores.argmax(dim=1) == labels).sum().item()
    n = len(loader.dataset)
    print(f"test: average loss {loss / n:.4f}, accuracy {right / n:.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--test-batch-size", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--gamma", type=float, default=0.7, help="what the learning rate is multiplied by each epoch")
    parser.add_argument("--samples", type=int, default=12_800, help="to train with; a tenth more to test with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--no-cuda", action="store_true")
    parser.add_argument("--no-save", action="store_true", help="do not write mnist_cnn.pt")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    on_gpu = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}
    train_loader = DataLoader(Digits(args.samples, seed=1), batch_size=args.batch_size, shuffle=True, **on_gpu)
    test_loader = DataLoader(Digits(args.samples // 10, seed=2), batch_size=args.test_batch_size, **on_gpu)
    model = Net().to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=args.lr)
    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)

    seconds = 0.0
    for epoch in range(1, args.epochs + 1):
        began = time.perf_counter()
        train_epoch(epoch, model, train_loader, optimizer, device, args.log_every)
        seconds += time.perf_counter() - began
        test(model, test_loader, device)
        scheduler.step()
    print(f"{args.epochs * len(train_loader)} steps in {seconds:.2f} s")
    if not args.no_save:
        torch.save(model.state_dict(), "mnist_cnn.pt")


if __name__ == "__main__":
    main()
