"""One rank as a process: loads its share of an epoch, augments it, writes a checksum an image.

Usage: augmented_rank.py DATA OUT.json NUM_RANKS RANK GLOBAL_BATCH EPOCH
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import loading

import msdata
from msdata.augment import AugmentConfig, open_augmenter, stream


def main() -> None:
    data, out = sys.argv[1:3]
    num_ranks, rank, global_batch, epoch = map(int, sys.argv[3:])
    batch_size = global_batch // num_ranks
    split = loading.open_train(Path(data))
    config = AugmentConfig(fusion="late", band_dropout=0.2)
    checksums: dict[str, dict[str, int]] = {}
    with (
        msdata.Loader(
            split, batch_size, seed=3, topology=loading.topology(num_ranks, rank), threads=1
        ) as loader,
        open_augmenter(split.schema, config, seed=3, batch_size=batch_size, threads=1) as augmenter,
    ):
        loader.set_epoch(epoch)
        for batch, images in stream(loader, augmenter, epoch):
            for i, sample_id in enumerate(batch["sample_id"]):
                checksums[str(sample_id)] = {
                    name: zlib.crc32(image[i].tobytes()) for name, image in images.items()
                }
    Path(out).write_text(json.dumps(checksums))


main()
