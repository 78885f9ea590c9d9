"""A training loop of your own in PyTorch, without mstrain.

python docs/examples/pytorch_loop.py DATA
"""

import sys

import torch
from torch import nn

import msdata

data = msdata.open(sys.argv[1])
loader = msdata.Loader(data.split("train"), batch_size=32, seed=0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

shape = data.schema["panstarrs"].shape
network = nn.Sequential(
    nn.Conv2d(shape[0], 8, kernel_size=5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
)
network = nn.Sequential(network, nn.Flatten(), nn.Linear(8, 1)).to(device)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

for epoch in range(2):
    for batch in loader:
        # The batch lies in the loader's ring: copy it to the device before asking for the next one.
        images = torch.from_numpy(batch["panstarrs"]).to(device, copy=True)
        redshift = torch.from_numpy(batch["redshift"]).to(device, torch.float32, copy=True)
        loss = nn.functional.mse_loss(network(torch.asinh(images / 10)).squeeze(1), redshift)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
