"""A rank that runs batch norm over all ranks on its part of a batch; prints what came of it.

Arguments: the number of samples of each rank, such as `3,0,2`. Every rank draws the whole batch
and keeps its own part.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from mstrain.models.norms import RankBatchNorm2d


def main() -> None:
    """Two training steps, then an evaluation."""
    sizes = [int(n) for n in sys.argv[1].split(",")]
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    start = sum(sizes[:rank])
    norm = RankBatchNorm2d(5, momentum=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    found = {}
    for step in range(2):
        whole = torch.randn(sum(sizes), 5, 4, 3) * 3 + 7
        weights = torch.randn(sum(sizes), 5, 4, 3)
        part = whole[start : start + sizes[rank]].clone().requires_grad_()
        norm.zero_grad()
        result = norm(part)
        (result * weights[start : start + sizes[rank]]).sum().backward()
        gradients = torch.cat([norm.weight.grad, norm.bias.grad])
        dist.all_reduce(gradients)
        found[step] = {
            "result": result.tolist(),
            "gradient": part.grad.tolist(),
            "parameters": gradients.tolist(),
        }
    buffers = [norm.running_mean.tolist(), norm.running_var.tolist()]
    found["buffers"] = [*buffers, int(norm.num_batches_tracked)]
    print(json.dumps(found))
    dist.destroy_process_group()


main()
