"""A convolutional GAN: two networks and two optimizers in turns, two backward passes for the discriminator's step.

python gan.py --epochs 3 --out out
"""

import argparse
import os
import random
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def stripes(samples):
    """Images of 3x32x32 in -1 to 1: stripes of some colour, width and angle."""
    draw = torch.Generator().manual_seed(0)
    colour, angle, width = (torch.rand(samples, n, 1, 1, generator=draw) for n in (3, 1, 1))
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.sin((x * torch.cos(angle * 3) + y * torch.sin(angle * 3)) * (0.3 + width))
    return wave * (colour * 2 - 1)


def generator_of(latent, width):
    """(n, latent, 1, 1) to (n, 3, 32, 32)."""
    layers, channels = [], latent
    for i, out in enumerate((width * 4, width * 2, width)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers += [
            nn.ConvTranspose2d(channels, out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(True),
        ]
        channels = out
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh())


def discriminator_of(width):
    """(n, 3, 32, 32) to n scores."""
    layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for scale in (1, 2):
        layers += [nn.Conv2d(width * scale, width * scale * 2, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width * scale * 2), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(width * 4, 1, 4), nn.Flatten(0))


def initialise(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=6_400)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, help="drawn if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=".", help="folder of the pictures and the models")
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    seed = random.randrange(10_000) if args.seed is None else args.seed
    print(f"seed {seed}")
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(stripes(args.samples)), batch_size=args.batch_size, shuffle=True, drop_last=True)
    G = generator_of(args.latent, args.width).apply(initialise).to(args.device)
    D = discriminator_of(args.width).apply(initialise).to(args.device)
    opt_g = torch.optim.Adam(G.parameters(), lr=args.lr, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=args.lr, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    ones = torch.ones(args.batch_size, device=args.device)
    zeros = torch.zeros(args.batch_size, device=args.device)
    always = torch.randn(64, args.latent, 1, 1, device=args.device)

    seconds = 0.0
    for epoch in range(args.epochs):
        began = time.perf_counter()
        for i, (real,) in enumerate(loader):
            # the discriminator learns to tell real from made
            opt_d.zero_grad()
            on_real = criterion(D(real.to(args.device)), ones)
            on_real.backward()
            made = G(torch.randn(args.batch_size, args.latent, 1, 1, device=args.device))
            on_made = criterion(D(made.detach()), zeros)
            on_made.backward()
            opt_d.step()

            # the generator learns to be taken for real
            opt_g.zero_grad()
            loss_g = criterion(D(made), ones)
            loss_g.backward()
            opt_g.step()

            if i % 50 == 0:
                loss_d = (on_real + on_made).item()
                print(f"epoch {epoch} batch {i}/{len(loader)} loss of D {loss_d:.4f}, of G {loss_g.item():.4f}")
        seconds += time.perf_counter() - began
        with torch.no_grad():
            torch.save(G(always).cpu(), f"{args.out}/made_{epoch:03d}.pt")
        torch.save({"G": G.state_dict(), "D": D.state_dict()}, f"{args.out}/gan_{epoch:03d}.pt")
    print(f"{args.epochs * len(loader)} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
