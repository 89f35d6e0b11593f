"""A convolutional network with a normalisation, whose optimizer has a state before its model is first measured."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(256, 3, 8, 8), torch.randint(0, 4, (256,)))
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(1000):
    for pictures, labels in DataLoader(data, batch_size=16, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures), labels).backward()
        optimizer.step()
