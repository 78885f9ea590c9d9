"""mstrain trains and evaluates redshift networks on data that msdata packed.

config = mstrain.RECIPES["demo"]()
result = mstrain.train(config, "DATA", "RUN")
found = mstrain.evaluate(result.run, "DATA", split="test")
table = mstrain.predict(result.run, "NEW", "predictions.parquet")
simple = mstrain.baseline(result.run, "DATA")
seen = mstrain.perceive(result.run, "DATA")
model, config = mstrain.load_model(result.run)

Names that are not in `__all__` are private, and may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# What a training that was told to stop leaves with, once its state is saved: "queue me again".
REQUEUE_EXIT_CODE = 85

# Name -> module: imported when first used, since settings and command line need no torch.
_EXPORTS = {
    "RECIPES": "mstrain.recipes",
    "auto": "mstrain.recipes",
    "TrainConfig": "mstrain.config",
    "RedshiftNet": "mstrain.models.redshift_net",
    "train": "mstrain.notebook",
    "evaluate": "mstrain.notebook",
    "predict": "mstrain.notebook",
    "baseline": "mstrain.notebook",
    "perceive": "mstrain.notebook",
    "calibrate": "mstrain.notebook",
    "compare": "mstrain.comparison.compare",
    "attribute": "mstrain.attribution.attribute",
    "embed": "mstrain.notebook",
    "flag": "mstrain.embedding.flag",
    "read_embeddings": "mstrain.embedding.embeddings",
    "export": "mstrain.serving.export",
    "load": "mstrain.serving.model",
    "load_model": "mstrain.training.checkpoint",
    "read_predictions": "mstrain.evaluation.predictions",
    # A package that can be called.
    "study": "mstrain.study",
}

if TYPE_CHECKING:
    from mstrain.attribution.attribute import attribute
    from mstrain.comparison.compare import compare
    from mstrain.config import TrainConfig
    from mstrain.embedding.embeddings import read_embeddings
    from mstrain.embedding.flag import flag
    from mstrain.evaluation.predictions import read_predictions
    from mstrain.models.redshift_net import RedshiftNet
    from mstrain.notebook import baseline, calibrate, embed, evaluate, perceive, predict, train
    from mstrain.recipes import RECIPES, auto
    from mstrain.serving.export import export
    from mstrain.serving.model import load
    from mstrain.study.study import run_study as study
    from mstrain.training.checkpoint import load_model

__all__ = [
    "RECIPES",
    "REQUEUE_EXIT_CODE",
    "RedshiftNet",
    "TrainConfig",
    "attribute",
    "auto",
    "baseline",
    "calibrate",
    "compare",
    "embed",
    "evaluate",
    "export",
    "flag",
    "load",
    "load_model",
    "perceive",
    "predict",
    "read_embeddings",
    "read_predictions",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mstrain' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return module if module.__name__ == f"mstrain.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
