"""A few blocks of attention, in a list."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens):
        query, key, value = self.mixed(tokens).unsqueeze(1).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return tokens + self.out(attended.squeeze(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 1)

    def forward(self, tokens):
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens).mean()


data = TensorDataset(torch.randn(64, 12, 16))
model = Net()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(1000):
    for (tokens,) in DataLoader(data, batch_size=8):
        optimizer.zero_grad()
        model(tokens).square().backward()
        optimizer.step()
