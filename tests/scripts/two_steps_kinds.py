"""Two optimizers in turns of a long period: five steps of the critic, one of the generator."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--n-critic", type=int, default=5)
parser.add_argument("--steps", type=int, default=4_000, help="of the generator")
args = parser.parse_args()

generator = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 32))
critic = nn.Sequential(nn.Linear(32, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
of_generator = torch.optim.RMSprop(generator.parameters(), lr=5e-5)
of_critic = torch.optim.RMSprop(critic.parameters(), lr=5e-5)
for step in range(args.steps):
    for _ in range(args.n_critic):
        of_critic.zero_grad()
        made = generator(torch.randn(64, 16)).detach()
        gap = critic(made).mean() - critic(torch.randn(64, 32) + 2).mean()
        gap.backward()
        of_critic.step()
        with torch.no_grad():
            for weight in critic.parameters():
                weight.clamp_(-0.05, 0.05)
    of_generator.zero_grad()
    loss = -critic(generator(torch.randn(64, 16))).mean()
    loss.backward()
    of_generator.step()
    if step % 200 == 0:
        print(f"step {step} gap {gap.item():.4f} loss {loss.item():.4f}")
