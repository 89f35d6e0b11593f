"""Rows of a CSV file, each parsed anew whenever it is asked for: a Dataset that is slower than its network.

python csv_rows.py --epochs 1 --num-workers 2
"""

import argparse
import csv
import random
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

COLUMNS = 24
COLOURS = ["red", "green", "blue", "grey"]


def write_rows(path, rows):
    draw = random.Random(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(COLUMNS)), "colour", "price"])
        for _ in range(rows):
            numbers = [draw.gauss(0, 1) for _ in range(COLUMNS)]
            colour = draw.randrange(len(COLOURS))
            price = sum(numbers[:6]) + numbers[6] * numbers[7] + colour
            writer.writerow([*(f"{number:.6f}" for number in numbers), COLOURS[colour], f"{price:.4f}"])


class Rows(Dataset):
    """The rows of a file after its first, kept as text."""

    def __init__(self, path):
        self.lines = Path(path).read_text().splitlines()[1:]

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, index):
        *numbers, colour, price = next(csv.reader([self.lines[index]]))
        features = [float(number) for number in numbers] + [float(colour == name) for name in COLOURS]
        return torch.tensor(features), torch.tensor([float(price)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a CSV file; one is made if none is given")
    parser.add_argument("--rows", type=int, default=20_000, help="of the file that is made")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or f"{folder}/rows.csv"
        if args.data is None:
            write_rows(path, args.rows)
        dataset = Rows(path)
    train, valid = torch.utils.data.random_split(dataset, [0.9, 0.1])
    train_loader = DataLoader(train, args.batch_size, True, num_workers=args.num_workers)
    valid_loader = DataLoader(valid, args.batch_size, num_workers=args.num_workers)
    model = nn.Sequential(
        nn.Linear(COLUMNS + len(COLOURS), 256), nn.ReLU(), nn.BatchNorm1d(256), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 1),
    ).to(args.device)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr * 10, args.epochs * len(train_loader))

    seconds = 0.0
    for epoch in range(args.epochs):
        began, total = time.perf_counter(), 0.0
        model.train()
        for features, price in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(features.to(args.device)), price.to(args.device))
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        seconds += time.perf_counter() - began

        model.eval()
        errors = []
        with torch.no_grad():
            for features, price in valid_loader:
                errors.append((model(features.to(args.device)) - price.to(args.device)).abs().mean().item())
        print(f"epoch {epoch} loss {total / len(train_loader):.4f} valid error {sum(errors) / len(errors):.4f}")
    print(f"{args.epochs * len(train_loader)} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
