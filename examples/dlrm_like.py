"""Will a reader click? Many sparse features in embedding bags and a few dense ones; two optimizers, one of them sparse.

python dlrm_like.py --num-batches 200
"""

import argparse
import time
from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Clicks(Dataset):
    """Each row has 13 numbers, some indices for each table, and whether there was a click."""

    def __init__(self, rows, tables, entries, seed):
        self.rows, self.tables, self.entries, self.seed = rows, tables, entries, seed
        self.taste = torch.randn(tables, entries, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        draw = torch.Generator().manual_seed(self.seed * self.rows + row)
        dense = torch.rand(13, generator=draw)
        indices = torch.rand(self.tables, 4, generator=draw).pow(3).mul(self.entries).long()
        liking = self.taste.gather(1, indices).mean() * 2 + dense[0] - 0.5
        return dense, indices, float(liking > 0)


def collate(rows):
    dense, indices, clicks = zip(*rows, strict=True)
    return torch.stack(dense), torch.stack(indices, dim=1), torch.tensor(clicks)


def layers(*sizes):
    linears = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in linears for layer in pair))


class DLRM(nn.Module):
    def __init__(self, tables, entries, width):
        super().__init__()
        bags = [nn.EmbeddingBag(entries, width, mode="sum", sparse=True) for _ in range(tables)]
        self.embeddings = nn.ModuleList(bags)
        self.bottom = layers(13, 128, width)
        places = (tables + 1) * tables // 2
        self.top = nn.Sequential(layers(width + places, 256, 128), nn.Linear(128, 1))

    def forward(self, dense, indices):
        """(n, 13) and (tables, n, 4) to n scores."""
        x = self.bottom(dense)
        looked_up = [bag(index) for bag, index in zip(self.embeddings, indices, strict=True)]
        vectors = torch.stack([x, *looked_up], dim=1)
        products = vectors @ vectors.transpose(1, 2)
        i, j = torch.tril_indices(vectors.size(1), vectors.size(1), -1)
        return self.top(torch.cat([x, products[:, i, j]], dim=1)).flatten()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mini-batch-size", type=int, default=128)
    parser.add_argument("--num-batches", type=int, default=2_000)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--tables", type=int, default=8)
    parser.add_argument("--entries", type=int, default=20_000, help="rows of each table")
    parser.add_argument("--width", type=int, default=16, help="of an embedding")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--print-freq", type=int, default=100)
    parser.add_argument("--test-freq", type=int, default=500)
    parser.add_argument("--use-gpu", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(123)
    device = torch.device("cuda" if args.use_gpu else "cpu")
    rows = args.num_batches * args.mini_batch_size
    options = {"batch_size": args.mini_batch_size, "num_workers": args.num_workers, "collate_fn": collate}
    train_loader = DataLoader(Clicks(rows, args.tables, args.entries, seed=1), shuffle=True, **options)
    test_loader = DataLoader(Clicks(2_048, args.tables, args.entries, seed=2), **options)
    model = DLRM(args.tables, args.entries, args.width).to(device)
    of_dense = torch.optim.Adagrad([*model.bottom.parameters(), *model.top.parameters()], lr=args.learning_rate)
    of_sparse = torch.optim.SparseAdam(list(model.embeddings.parameters()), lr=args.learning_rate)
    criterion = nn.BCEWithLogitsLoss()

    seconds, began = 0.0, time.perf_counter()
    total = 0.0
    for batch, (dense, indices, clicks) in enumerate(train_loader, 1):
        scores = model(dense.to(device), indices.to(device))
        loss = criterion(scores, clicks.to(device))
        of_dense.zero_grad()
        of_sparse.zero_grad()
        loss.backward()
        of_dense.step()
        of_sparse.step()
        total += loss.item()
        if batch % args.print_freq == 0:
            print(f"Finished training it {batch}/{args.num_batches}, loss {total / args.print_freq:.6f}")
            total = 0.0
        if batch % args.test_freq == 0:
            seconds += time.perf_counter() - began
            with torch.no_grad():
                right = sum(
                    ((model(dense.to(device), indices.to(device)) > 0).cpu() == clicks.bool()).sum().item()
                    for dense, indices, clicks in test_loader
                )
            print(f"Testing at {batch}/{args.num_batches}, accuracy {right / 2_048:.3%}")
            began = time.perf_counter()
    seconds += time.perf_counter() - began
    print(f"{args.num_batches} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
