"""Nearest neighbors among any number of vectors, in blocks on any device.

An exact search: candidates are chosen by float32 products of matrices, and their distances computed
again in float64 from differences, so that the distance of a vector to itself is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mstrain.evaluation.metrics.densities import Floats

# 64 MB of distances at a time.
_QUERIES, _REFERENCES = 1024, 16_384


def nearest(
    query_QD: NDArray[np.floating],
    reference_parts: Iterable[NDArray[np.floating]],
    count: int,
    device: torch.device | str = "cpu",
) -> tuple[Floats, NDArray[np.int64]]:
    """The nearest reference vectors of each query, by Euclidean distance.

    Args:
        query_QD: (Q, D).
        reference_parts: (n, D) each, all references one part after the other; read once.
        count: neighbors per query.
        device: where products are computed.

    Returns:
        Distances float64 (Q, k), rising, and numbers of the references int64 (Q, k); k is `count`,
        or all references where they are fewer.
    """
    query = torch.from_numpy(np.ascontiguousarray(query_QD, np.float32)).to(device)
    num_queries = len(query)
    best = torch.zeros((num_queries, 0), dtype=torch.float64, device=device)
    row = torch.zeros((num_queries, 0), dtype=torch.int64, device=device)
    start = 0
    for part in reference_parts:
        for first in range(0, len(part), _REFERENCES):
            piece = np.ascontiguousarray(part[first : first + _REFERENCES], np.float32)
            reference = torch.from_numpy(piece).to(device)
            blocks = [
                _nearer(
                    query[q : q + _QUERIES],
                    reference,
                    start + first,
                    best[q : q + _QUERIES],
                    row[q : q + _QUERIES],
                    count,
                )
                for q in range(0, num_queries, _QUERIES)
            ]
            if blocks:
                best = torch.cat([b for b, _ in blocks])
                row = torch.cat([r for _, r in blocks])
        start += len(part)
    return best.cpu().numpy(), row.cpu().numpy()


def _nearer(
    query: Tensor, reference: Tensor, start: int, best: Tensor, row: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The best neighbors so far, and those of one more block of references."""
    rough = torch.addmm(reference.square().sum(dim=1)[None], query, reference.T, alpha=-2)
    # More than asked for: rounding may exchange neighbors at nearly the same distance.
    taken = min(count + 2, len(reference))
    place = torch.topk(rough, taken, dim=1, largest=False).indices
    exact = torch.stack(
        [
            (query.double() - reference[place[:, n]].double()).square().sum(dim=1).sqrt()
            for n in range(taken)
        ],
        dim=1,
    )
    best, row = torch.cat([best, exact], dim=1), torch.cat([row, place + start], dim=1)
    order = torch.argsort(best, dim=1, stable=True)[:, :count]
    return best.gather(1, order), row.gather(1, order)
