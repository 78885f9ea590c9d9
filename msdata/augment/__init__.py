"""Turn survey cutouts into network input: rotate, crop, align, scale; on the CPU or the GPU.

with open_augmenter(data.schema, AugmentConfig(), seed=0, batch_size=128) as augmenter:
    for batch, images in stream(loader, augmenter):
        images["image"]  # float32 (128, 9, 120, 120)
"""

from msdata.augment.augmenter import BACKENDS, open_augmenter, stream
from msdata.augment.backend import Augmenter
from msdata.augment.config import AugmentConfig
from msdata.augment.draws import Draws, draw
from msdata.augment.statistics import BandStatistics, Statistics, read_statistics

__all__ = [
    "BACKENDS",
    "AugmentConfig",
    "Augmenter",
    "BandStatistics",
    "Draws",
    "Statistics",
    "draw",
    "open_augmenter",
    "read_statistics",
    "stream",
]
