"""A variational autoencoder; after each epoch it writes images beside their reconstructions, and some drawn ones.

python vae.py --epochs 5
"""

import argparse
import os
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def blobs(samples, seed):
    """Images of 28x28 floats in 0 to 1, each with one soft spot; (samples, 784)."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, samples, 1, generator=draw) * 20 + 4
    width = torch.rand(samples, 1, generator=draw) * 3 + 2
    at = torch.arange(28.0)
    row = torch.exp(-(((at - x) / width) ** 2))
    column = torch.exp(-(((at - y) / width) ** 2))
    return (column.unsqueeze(2) * row.unsqueeze(1)).reshape(samples, 784)


def save_picture(images, path):
    """Write (rows, columns, 784) as one grey picture."""
    rows, columns, _ = images.shape
    grid = images.reshape(rows, columns, 28, 28).transpose(1, 2).reshape(-1)
    with open(path, "wb") as file:
        file.write(b"P5 %d %d 255\n" % (columns * 28, rows * 28))
        file.write(bytes(grid.clamp(0, 1).mul(255).byte().tolist()))


class VAE(nn.Module):
    def __init__(self, hidden, latent):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(784, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 784), nn.Sigmoid())

    def forward(self, images):
        features = self.encoder(images)
        mean, log_variance = self.mean(features), self.log_variance(features)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(drawn), mean, log_variance


def elbo_loss(model, images):
    """The negative lower bound of a batch's log likelihood, and what was decoded."""
    decoded, mean, log_variance = model(images)
    reconstruction = F.binary_cross_entropy(decoded, images, reduction="sum")
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
    return reconstruction + divergence, decoded


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=25_600)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", default="results", help="folder of the pictures")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    os.makedirs(args.results, exist_ok=True)
    train_loader = DataLoader(TensorDataset(blobs(args.samples, 1)), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(TensorDataset(blobs(args.samples // 10, 2)), batch_size=args.batch_size)
    model = VAE(args.hidden, args.latent).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    seconds = 0.0
    for epoch in range(1, args.epochs + 1):
        began = time.perf_counter()
        model.train()
        total = 0.0
        for (images,) in train_loader:
            images = images.to(device)
            loss, _ = elbo_loss(model, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds += time.perf_counter() - began

        model.eval()
        test_total = 0.0
        with torch.no_grad():
            for i, (images,) in enumerate(test_loader):
                images = images.to(device)
                loss, decoded = elbo_loss(model, images)
                test_total += loss.item()
                if i == 0:
                    pairs = torch.stack([images[:8], decoded[:8]]).cpu()
                    save_picture(pairs, f"{args.results}/reconstruction_{epoch}.pgm")
            drawn = model.decoder(torch.randn(64, args.latent, device=device)).cpu()
            save_picture(drawn.view(8, 8, 784), f"{args.results}/drawn_{epoch}.pgm")
        tests = len(test_loader.dataset)
        print(f"epoch {epoch:3d}  train loss {total / args.samples:.3f}  test loss {test_total / tests:.3f}")
    print(f"{args.epochs * len(train_loader)} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
