"""Rotated, mirrored, scaled images of all bands on one grid, drawn alike on any number of ranks.

msdata stats DATA
python docs/examples/augmentation.py DATA
"""

import sys

import msdata
from msdata.augment import AugmentConfig, open_augmenter, read_statistics, stream

data = msdata.open(sys.argv[1])
loader = msdata.Loader(data.split("train"), batch_size=32, seed=0)
config = AugmentConfig(fusion="early", rotation="any", scaling="asinh")
statistics = read_statistics(sys.argv[1])
with open_augmenter(data.schema, config, seed=0, batch_size=32, statistics=statistics) as augmenter:
    for batch, images in stream(loader, augmenter):
        print(batch["sample_id"][0], images["image"].shape)  # (32, 9, 120, 120)
