"""The trainings of the study, and what `mstrain perceive` says of them; each is made once.

An interrupted study resumes: data sets, trainings and scores that are there are taken as they are,
and a training resumes from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import make_objects, pack_objects, run_mstrain

EARLY = "early"
# Scores of the same network when partners are neighbors in this quantity.
WITHIN = "magnitude"
# Fusions that are compared, both on few objects, and the name of their scores.
FUSIONS = ("small-early", "small-late")
PAIR = "pair"
DEAF_BAND, ONLY_BAND = "unwise.W2", "unwise.W1"
# Data sets with a planted fault.
_PLANTED = {"deaf": ("--deaf-band", DEAF_BAND), "only": ("--only-band", ONLY_BAND)}


@dataclass(frozen=True, kw_only=True)
class Design:
    """How much the study does.

    Attributes:
        num_objects: mock objects of the network that the maps are of.
        epochs: of its training.
        num_control: mock objects of each control, and of the pair of early and late fusion.
        control_epochs: of those.
        permutations: partners of each object.
        redshift_edges: bins of redshift.
        has_pair: also train the pair.
    """

    num_objects: int
    epochs: int
    num_control: int
    control_epochs: int
    permutations: int
    redshift_edges: tuple[float, ...]
    has_pair: bool = True


@dataclass(frozen=True)
class Cell:
    """Networks on a data set, compared by what they perceive.

    Attributes:
        data: name of the data set.
        trainings: settings of each training by its name.
        options: more of `mstrain perceive`.
    """

    data: str
    trainings: Mapping[str, tuple[str, ...]]
    options: tuple[str, ...] = ()


def cells_of(design: Design) -> dict[str, Cell]:
    """What is trained and measured, by the name of its scores, the headline first."""
    headline = {EARLY: (f"epochs={design.epochs}",)}
    fewer = (f"epochs={design.control_epochs}",)
    edges = ("--redshift-edges", ",".join(f"{z:g}" for z in design.redshift_edges))
    fusions = dict(zip(FUSIONS, (fewer, (*fewer, "augment.fusion=late")), strict=True))
    return {
        EARLY: Cell("standard", headline, edges),
        "deaf": Cell("deaf", {"deaf": fewer}),
        "only": Cell("only", {"only": fewer}),
        WITHIN: Cell("standard", headline, ("--within", WITHIN, *edges)),
        **({PAIR: Cell("small", fusions)} if design.has_pair else {}),
    }


def measure_all(design: Design, folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of every cell, as `mstrain perceive` writes them; makes what is missing."""
    found = {}
    for name, cell in cells_of(design).items():
        out = scores_folder(folder, name)
        if not (out / "perceive-test.json").is_file():
            data = make_data(cell.data, design, folder)
            runs = {folder / f"run-{run}": settings for run, settings in cell.trainings.items()}
            for run, settings in runs.items():
                run_mstrain("train", "demo", data, "--out", run, *settings)
            words = ["--permutations", str(design.permutations), *cell.options]
            run_mstrain("perceive", *runs, data, *words, "--out", out, "--no-report")
        found[name] = json.loads((out / "perceive-test.json").read_bytes())
    return found


def scores_folder(folder: Path, cell: str) -> Path:
    """Where a cell's scores and tables of objects are."""
    return folder / f"scores-{cell}"


def make_data(name: str, design: Design, folder: Path) -> Path:
    """A packed data set of mock objects, unless it is there."""
    data, objects = folder / f"data-{name}", folder / f"objects-{name}"
    if not (data / "dataset.json").is_file():
        count = design.num_objects if name == "standard" else design.num_control
        make_objects(objects, count, "--seed", "0", *_PLANTED.get(name, ()))
        pack_objects(objects, data)
        shutil.rmtree(objects)
    return data
