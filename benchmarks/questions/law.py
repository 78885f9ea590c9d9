"""How does the error fall with the number of objects? A study of `mstrain study` on mock stamps.

What is trained is `law.toml`, on one data set of mock stamps, or of the first objects of `--data`.
It stands alone: the study of policies packs data sets by seed, this one packs one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Settings
from benchmarks.questions.policies import made_of, show, size_of_study, stamps_in, study
from benchmarks.questions.policies_data import Stamps, pack_stamps
from benchmarks.report import write_shown
from mstrain.study.spec import read_spec

SPEC = Path(__file__).with_name("law.toml")
_SPLIT = (0.75, 0.05, 0.2)


def answer(settings: Settings) -> int:
    """Trains all arms and writes `law.json`; returns the exit code 0."""
    num = size_of_study(settings, 600, 4000)
    folder = settings.work / f"law-{num}{'' if settings.data is None else '-of-data'}"
    count = stamps_in(folder, ["stamps"], partial(made_of, settings.data, num), settings.data)
    result = study(
        read_spec(SPEC, seeds=2 if settings.quick else None),
        folder,
        partial(prepare, folder / "stamps.npz", max(4, count // 250)),
    )
    cells = result.pop("cells")
    found = {"quick": settings.quick, "num_stamps": count, "study": result, "ratios": {}}
    write_shown("law", found, show(found), settings, raw={"cells": cells})
    return 0


def prepare(stamps: Path, num_shards: int, folder: Path, seed: int) -> None:
    """Packs the data set, unless it was done: all seeds train on the same one."""
    if seed == 0:
        found = Stamps.read(stamps)
        pack_stamps(found, folder, np.arange(len(found)), (0, num_shards), _SPLIT)
