"""Does quantization cost accuracy? The spec `quantise` of mstrain, on stamps of coded cutouts.

A seed draws the same split, shards, weights and orders for each arm. The cutouts are quantized as
`msdata pack` does, before they become stamps. It stands alone: the forms beside it train nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Settings
from benchmarks.questions.policies import SPEC, stamps_in, study
from benchmarks.questions.policies_data import Stamps, make_coded_stamps, pack_stamps
from mstrain.study.spec import Spec, read_spec


def coded_spec() -> Spec:
    """The spec `quantise` with the network of the study of policies, on data sets of each seed."""
    spec, policies = read_spec("quantise", seeds=8), read_spec(SPEC)
    arms = tuple(replace(arm, data=f"seed-{{seed}}/{arm.data}") for arm in spec.arms)
    return replace(spec, arms=arms, recipe=policies.recipe, settings=policies.settings)


def steps_of(spec: Spec) -> dict[str, float | None]:
    """Steps per sigma of each arm's cutouts; None for float32."""
    return {a.name: float(a.name[1:]) if a.name.startswith("q") else None for a in spec.arms}


def coded_study(settings: Settings, num_objects: int) -> dict[str, Any]:
    """Trains all arms; takes up what an earlier run left.

    Raises:
        UsageError: there are too few objects.
    """
    spec = coded_spec()
    steps = steps_of(spec)
    folder = settings.work / f"smaller-{num_objects}{'' if settings.data is None else '-of-data'}"
    make = partial(_stamps, settings.data, num_objects, tuple(steps.values()))
    count = stamps_in(folder, list(steps), make, settings.data)
    found = study(spec, folder, partial(prepare_seed, folder, tuple(steps), count // 100))
    return {name: value for name, value in found.items() if name != "cells"}


def _stamps(
    data: Path | None, num: int, steps: tuple[float | None, ...], jobs: int
) -> list[Stamps]:
    return make_coded_stamps(data, num, jobs, steps)


def prepare_seed(
    stamps: Path, names: tuple[str, ...], num_shards: int, folder: Path, seed: int
) -> None:
    """Packs a seed's data sets, unless it was done: the same objects in the same shards."""
    for name in names:
        found, out = Stamps.read(stamps / f"{name}.npz"), folder / f"seed-{seed}" / name
        pack_stamps(found, out, np.arange(len(found)), (seed, num_shards))
