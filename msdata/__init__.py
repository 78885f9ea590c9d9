"""msdata packs, plans, caches and loads image cutouts for training on many GPUs.

data = msdata.open("DATA")
loader = msdata.Loader(data.split("train"), batch_size=128, seed=0)
for batch in loader:
batch["panstarrs"], batch["redshift"], batch["sample_id"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Name -> module: imported when first used, so that a command that needs none of them starts fast.
_EXPORTS = {
    # Packages that can be called.
    "pack": ("msdata.pack", ""),
    "plan": ("msdata.plan", ""),
    "open": ("msdata.dataset.dataset", "open_dataset"),
    "Dataset": ("msdata.dataset.dataset", "Dataset"),
    "Split": ("msdata.dataset.dataset", "Split"),
    "Writer": ("msdata.ingest.writer", "Writer"),
    "index": ("msdata.ingest.in_place", "index_in_place"),
    "add_columns": ("msdata.ingest.add_columns", "add_columns"),
    "join_parts": ("msdata.ingest.join", "join_parts"),
    "unpack": ("msdata.ingest.unpack", "unpack"),
    "Loader": ("msdata.loader.loader", "Loader"),
    "AugmentConfig": ("msdata.augment.config", "AugmentConfig"),
    "open_augmenter": ("msdata.augment.augmenter", "open_augmenter"),
    "read_statistics": ("msdata.augment.statistics", "read_statistics"),
    "CacheConfig": ("msdata.cache.config", "CacheConfig"),
    "TorchDataset": ("msdata.loader.torch_dataset", "TorchDataset"),
    "Schema": ("msdata.schema", "Schema"),
    "Survey": ("msdata.schema", "Survey"),
    "MANTIS_SHRIMP": ("msdata.schema", "MANTIS_SHRIMP"),
    "Topology": ("msdata.topology", "Topology"),
    "torch": ("msdata.torch", ""),
    "MsdataError": ("msdata.errors", "MsdataError"),
}

if TYPE_CHECKING:
    from msdata.augment.augmenter import open_augmenter
    from msdata.augment.config import AugmentConfig
    from msdata.augment.statistics import read_statistics
    from msdata.cache.config import CacheConfig
    from msdata.dataset.dataset import Dataset, Split
    from msdata.dataset.dataset import open_dataset as open
    from msdata.errors import MsdataError
    from msdata.ingest.add_columns import add_columns
    from msdata.ingest.in_place import index_in_place as index
    from msdata.ingest.join import join_parts
    from msdata.ingest.unpack import unpack
    from msdata.ingest.writer import Writer
    from msdata.loader.loader import Loader
    from msdata.loader.torch_dataset import TorchDataset as TorchDataset
    from msdata.pack.run import pack_folder as pack
    from msdata.plan.plan_data import plan_job as plan
    from msdata.schema import MANTIS_SHRIMP, Schema, Survey
    from msdata.topology import Topology

# Without TorchDataset: `from msdata import *` must not need torch.
__all__ = [
    "MANTIS_SHRIMP",
    "AugmentConfig",
    "CacheConfig",
    "Dataset",
    "Loader",
    "MsdataError",
    "Schema",
    "Split",
    "Survey",
    "Topology",
    "Writer",
    "add_columns",
    "index",
    "join_parts",
    "open",
    "open_augmenter",
    "pack",
    "plan",
    "read_statistics",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'msdata' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
