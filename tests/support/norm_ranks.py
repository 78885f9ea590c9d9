"""A rank that runs batch norm over ranks on its part of batches; prints what came of each.

Arguments: the number of samples of each rank, such as `3,0,2`, for each case. Every rank draws the
whole batch and keeps its own part; a case of fewer ranks is that of a group of the first ones.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

from mstrain.models.norms import RankBatchNorm2d


def measure(sizes: list[int], rank: int, group: Any) -> dict[Any, Any]:
    """Two training steps."""
    start = sum(sizes[:rank])
    norm = RankBatchNorm2d(5, momentum=0.3, group=group)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    found: dict[Any, Any] = {}
    for step in range(2):
        whole = torch.randn(sum(sizes), 5, 4, 3) * 3 + 7
        weights = torch.randn(sum(sizes), 5, 4, 3)
        part = whole[start : start + sizes[rank]].clone().requires_grad_()
        norm.zero_grad()
        result = norm(part)
        (result * weights[start : start + sizes[rank]]).sum().backward()
        gradients = torch.cat([norm.weight.grad, norm.bias.grad])
        dist.all_reduce(gradients, group=group)
        found[step] = {
            "result": result.tolist(),
            "gradient": part.grad.tolist(),
            "parameters": gradients.tolist(),
        }
    buffers = [norm.running_mean.tolist(), norm.running_var.tolist()]
    found["buffers"] = [*buffers, int(norm.num_batches_tracked)]
    return found


def main() -> None:
    """Each case, one after the other."""
    dist.init_process_group("gloo")
    rank, cases = dist.get_rank(), []
    for text in sys.argv[1:]:
        sizes = [int(n) for n in text.split(",")]
        # Every rank takes part in making a group.
        group = dist.new_group(list(range(len(sizes))))
        if rank < len(sizes):
            cases.append(measure(sizes, rank, group))
    print(json.dumps(cases))
    dist.destroy_process_group()


main()
