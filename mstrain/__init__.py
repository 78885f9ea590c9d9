"""mstrain trains and evaluates redshift networks on data that msdata packed.

model, config = mstrain.load_model("RUN")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# What a training that was told to stop leaves with, once its state is saved: "queue me again".
REQUEUE_EXIT_CODE = 85

# Name -> module: imported when first used, since settings and command line need no torch.
_EXPORTS = {
    "load_model": "mstrain.training.checkpoint",
    "read_predictions": "mstrain.evaluation.predictions",
}

if TYPE_CHECKING:
    from mstrain.evaluation.predictions import read_predictions
    from mstrain.training.checkpoint import load_model

__all__ = ["REQUEUE_EXIT_CODE", "load_model", "read_predictions"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mstrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
