"""A graph convolutional network: the whole graph in each step, no loader, a sparse adjacency.

Its validation calls the model in eval mode but with gradients, as many such scripts do.

python gcn.py --epochs 200
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F


class GraphConvolution(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features, adjacency):
        return torch.sparse.mm(adjacency, features @ self.weight) + self.bias


class GCN(nn.Module):
    def __init__(self, inputs, hidden, classes, dropout):
        super().__init__()
        self.conv1 = GraphConvolution(inputs, hidden)
        self.conv2 = GraphConvolution(hidden, classes)
        self.dropout = dropout

    def forward(self, features, adjacency):
        x = F.relu(self.conv1(features, adjacency))
        x = F.dropout(x, self.dropout, training=self.training)
        return F.log_softmax(self.conv2(x, adjacency), dim=1)


def citations(papers, words, classes):
    """Papers of some topics, which cite their own topic most: word counts, a normalised adjacency and topics."""
    draw = torch.Generator().manual_seed(0)
    topics = torch.randint(classes, (papers,), generator=draw)
    likely = torch.rand(classes, words, generator=draw) * 0.02
    features = torch.bernoulli(likely[topics], generator=draw)
    features = features / features.sum(dim=1, keepdim=True).clamp(min=1)

    ends = torch.randint(papers, (2, papers * 12), generator=draw)
    same = topics[ends[0]] == topics[ends[1]]
    ends = ends[:, same | (torch.rand(same.shape, generator=draw) < 0.1)]
    loops = torch.arange(papers).expand(2, papers)
    ends = torch.cat([ends, ends.flip(0), loops], dim=1).unique(dim=1)
    degree = torch.bincount(ends[0], minlength=papers).float()
    values = degree[ends[0]].rsqrt() * degree[ends[1]].rsqrt()
    return features, torch.sparse_coo_tensor(ends, values, (papers, papers), check_invariants=False).coalesce(), topics


def accuracy(scores, topics):
    return (scores.argmax(dim=1) == topics).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-cuda", action="store_true")
    parser.add_argument("--fastmode", action="store_true", help="validate by the training's own pass")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=1_000)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--papers", type=int, default=2_700)
    parser.add_argument("--words", type=int, default=1_400)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    features, adjacency, topics = (part.to(device) for part in citations(args.papers, args.words, classes=7))
    train, valid, test = torch.arange(args.papers, device=device).split([140, 500, args.papers - 640])
    model = GCN(args.words, args.hidden, 7, args.dropout).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)

    began = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        scores = model(features, adjacency)
        loss = F.nll_loss(scores[train], topics[train])
        loss.backward()
        optimizer.step()

        if not args.fastmode:
            model.eval()
            scores = model(features, adjacency)
        if epoch % 20 == 0:
            valid_loss = F.nll_loss(scores[valid], topics[valid]).item()
            right = accuracy(scores[valid], topics[valid])
            print(f"epoch {epoch:4d} train loss {loss.item():.4f} valid loss {valid_loss:.4f} accuracy {right:.3f}")
    print(f"{args.epochs} steps in {time.perf_counter() - began:.2f} s")

    model.eval()
    with torch.no_grad():
        print(f"test accuracy {accuracy(model(features, adjacency)[test], topics[test]):.3f}")


if __name__ == "__main__":
    main()
