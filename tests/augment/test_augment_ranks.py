"""Ranks as processes: a sample's image is the same on any number of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packing

GLOBAL_BATCH = 12


def images_of(data: Path, out: Path, num_ranks: int, epoch: int) -> dict[str, Any]:
    """Checksums of all samples' images, by id, from so many processes at once."""
    files = [out / f"{num_ranks}-{rank}-{epoch}.json" for rank in range(num_ranks)]
    processes = [
        packing.start(
            [
                *(
                    sys.executable,
                    str(Path(__file__).parents[1].joinpath("support", "augmented_rank.py")),
                ),
                *(str(data), str(file)),
                *map(str, (num_ranks, rank, GLOBAL_BATCH, epoch)),
            ]
        )
        for rank, file in enumerate(files)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=packing.TIMEOUT_S)
        assert process.returncode == 0, errors
    shares = [json.loads(file.read_text()) for file in files]
    together = {name: image for share in shares for name, image in share.items()}
    assert len(together) == sum(map(len, shares))
    return together


def test_a_sample_is_augmented_alike_on_any_number_of_ranks(
    packed: Callable[..., Path], mantis_source: Path, tmp_path: Path
) -> None:
    data = packed(mantis_source, "--split", "0.9,0,0.1")
    alone = images_of(data, tmp_path, 1, epoch=2)
    assert len(alone) > 20
    assert len({json.dumps(images) for images in alone.values()}) == len(alone)
    assert images_of(data, tmp_path, 4, epoch=2) == alone
