"""The trainings of the study, and what `mstrain perceive` says of them; each is made once.

An interrupted study resumes: data sets, trainings and scores that are there are taken as they are,
and a training resumes from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import run_msdata, run_mstrain

EARLY = "early"
# Scores of the same network when partners are neighbors in this quantity.
WITHIN = "magnitude"
# Fusions that are compared, both on few objects.
PAIR = ("small-early", "small-late")
DEAF_BAND, ONLY_BAND = "unwise.W2", "unwise.W1"


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


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network on a data set, and what it perceives.

    Attributes:
        name: of the scores.
        data: name of the data set.
        settings: of the training.
        run: name of the training; empty for that of the scores.
        options: more of `mstrain perceive`.
    """

    name: str
    data: str
    settings: tuple[str, ...]
    run: str = ""
    options: tuple[str, ...] = ()


def cells_of(design: Design) -> tuple[Cell, ...]:
    """What is trained and measured, the headline first."""
    epochs, fewer = f"epochs={design.epochs}", f"epochs={design.control_epochs}"
    edges = ("--redshift-edges", ",".join(f"{z:g}" for z in design.redshift_edges))
    pair = (
        Cell(name=PAIR[0], data="small", settings=(fewer,)),
        Cell(name=PAIR[1], data="small", settings=(fewer, "augment.fusion=late")),
    )
    return (
        Cell(name=EARLY, data="standard", settings=(epochs,), options=edges),
        Cell(name="deaf", data="deaf", settings=(fewer,)),
        Cell(name="only", data="only", settings=(fewer,)),
        Cell(
            name=WITHIN,
            data="standard",
            settings=(epochs,),
            run=EARLY,
            options=("--within", WITHIN, *edges),
        ),
        *(pair if design.has_pair else ()),
    )


def data_options(name: str, design: Design) -> tuple[int, tuple[str, ...]]:
    """How many objects a data set has, and what is planted in it."""
    if name == "deaf":
        return design.num_control, ("--deaf-band", DEAF_BAND)
    if name == "only":
        return design.num_control, ("--only-band", ONLY_BAND)
    return (design.num_control if name == "small" else design.num_objects), ()


def measure_all(design: Design, folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of every cell, as `mstrain perceive` writes them; makes what is missing."""
    return {cell.name: _measure(cell, design, folder) for cell in cells_of(design)}


def scores_folder(folder: Path, cell: str) -> Path:
    """Where a cell's scores and tables of objects are."""
    return folder / f"scores-{cell}"


def _measure(cell: Cell, design: Design, folder: Path) -> dict[str, Any]:
    out = scores_folder(folder, cell.name)
    path = out / "perceive-test.json"
    if not path.is_file():
        data = make_data(cell.data, design, folder)
        run = folder / f"run-{cell.run or cell.name}"
        run_mstrain("train", "demo", data, "--out", run, *cell.settings)
        words = ["--permutations", str(design.permutations), *cell.options]
        run_mstrain("perceive", run, data, *words, "--out", out, "--no-report")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def make_data(name: str, design: Design, folder: Path) -> Path:
    """A packed data set of mock objects, unless it is there."""
    data, objects = folder / f"data-{name}", folder / f"objects-{name}"
    if not (data / "dataset.json").is_file():
        count, planted = data_options(name, design)
        if not (objects / "catalog.csv").is_file():
            run_msdata("mock", objects, "--n", str(count), "--seed", "0", *planted)
        run_msdata("pack", objects, data, "--catalog", objects / "catalog.csv", "--resume")
        shutil.rmtree(objects)
    return data
