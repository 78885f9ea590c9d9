"""DistributedDataParallel with exact resume, on any number of ranks.

torchrun --nproc-per-node 2 docs/examples/ddp_resume.py DATA STATE.pt

Run it twice: the second run resumes after the last step of the first, sample for sample.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import msdata

data, state_file = msdata.open(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
num_ranks, rank = dist.get_world_size(), dist.get_rank()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)

# The loader reads rank and size from torchrun's environment; batch_size counts per rank.
loader = msdata.Loader(data.split("train"), batch_size=8 // num_ranks, seed=0, remainder="drop")
torch.manual_seed(0)
shape = data.schema["panstarrs"].shape
network = nn.Sequential(
    nn.Conv2d(shape[0], 8, 5, stride=4),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(8, 1),
)
network = DistributedDataParallel(network.to(device))
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
if state_file.exists():
    state = torch.load(state_file, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    loader.load_state_dict(state["loader"])

for step, batch in enumerate(loader):
    images = torch.from_numpy(batch["panstarrs"]).to(device, copy=True)
    redshift = torch.from_numpy(batch["redshift"]).to(device, torch.float32, copy=True)
    loss = nn.functional.mse_loss(network(torch.asinh(images / 10)).squeeze(1), redshift)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 1:
        break

if rank == 0:
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "loader": loader.state_dict()}, state_file)
    print(f"saved after {loader.state_dict()}")
dist.destroy_process_group()
