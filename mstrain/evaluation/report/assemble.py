"""From a table of predictions, its metrics and its run to the report's content."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import msdata
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.evaluation.metrics.classes import (
    CLASS_SCORES,
    PREDICTED,
    PROBABILITY,
    ClassSummary,
)
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.outliers import KINDS, kinds_of
from mstrain.evaluation.metrics.scores import as_of_redshift, scaled_residual
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.metrics.uncertainty import Uncertainty
from mstrain.evaluation.predictions import Predictions
from mstrain.evaluation.report.classes import ClassContent, ClassObject
from mstrain.evaluation.report.content import (
    Content,
    GalleryObject,
    gallery_rows,
    kind_rows,
    worst_rows,
)
from mstrain.evaluation.report.sky import possible_positions, sky_section
from mstrain.evaluation.report.wording import TextTable, prior_table
from mstrain.evaluation.run_info import TrainedRun
from mstrain.models.target import Target
from mstrain.overrides import settings_of
from mstrain.training.metrics_log import read_journal

_NUM_WORST = 20


def assemble(
    predictions: Predictions,
    summary: Summary,
    split: Split,
    trained: TrainedRun,
    *,
    other_priors: Mapping[str, Summary],
    uncertainty: Uncertainty,
) -> Content:
    """Gathers what a report shows.

    Args:
        predictions: all samples of the split, in its order.
        summary: their metrics.
        split: from which the gallery's cutouts come.
        trained: the run.
        other_priors: metrics under other priors than the table's, by name.
        uncertainty: what the densities know of their errors.

    Raises:
        DataError: a sample of the gallery is damaged.
    """
    target = trained.target
    columns = as_of_redshift(predictions.columns, target)
    placed = [("", *found) for found in gallery_rows(np.asarray(columns["crps"], np.float64))]
    objects = placed + (kind_rows(columns) if target.thresholds else [])
    shown = _gallery(predictions, split, columns, objects)
    return Content(
        **_frame(predictions, summary, split, trained, other_priors),
        columns=columns,
        edges=predictions.edges,
        stacked=predictions.mean_density(np.isfinite(columns["redshift"])),
        gallery=shown[: len(placed)],
        uncertainty=uncertainty,
        kinds=shown[len(placed) :],
        worst=_worst(columns, split, target),
        sections=sky_section(columns, _positions(split), split, summary.bootstrap, target),
        target=target,
    )


def _frame(
    predictions: Predictions,
    summary: Summary | ClassSummary,
    split: Split,
    trained: TrainedRun,
    other_priors: Mapping[str, Summary | ClassSummary],
) -> dict[str, Any]:
    """What reports of densities and of classes both show."""
    origin, target = predictions.origin, trained.target
    told = "photometric redshifts" if target.is_redshift else target.column
    return {
        "title": f"{origin['recipe'] or 'network'}: {told} of split {split.name}",
        "facts": _facts(origin, split, summary.num_samples, target.noun),
        "notes": _notes(origin, split, trained.fingerprint),
        "summary": summary,
        "priors": prior_table(origin["prior"], summary, other_priors),
        "schema": split.schema,
        "journal": read_journal(trained.path),
        "settings": dict(settings_of(trained.config)),
    }


def _gallery(
    predictions: Predictions,
    split: Split,
    columns: Columns,
    objects: Sequence[tuple[str, float, int]],
) -> list[GalleryObject]:
    """Objects of a gallery, from their kind, place and row."""
    densities = predictions.densities_of([row for _, _, row in objects])
    return [
        GalleryObject(
            place=place,
            sample=split[row],
            values={name: values[row] for name, values in columns.items()},
            density=density,
            kind=KINDS.get(kind, ""),
        )
        for (kind, place, row), density in zip(objects, densities, strict=True)
    ]


def class_columns(predictions: Predictions, split: Split, target: Target) -> dict[str, Floats]:
    """The columns of a table of classes by the names of `mstrain.evaluation.metrics.classes`."""
    # The most probable class, as the table names it.
    best = np.concatenate([part.argmax(axis=1) for part in predictions.density_parts()])
    names = (*CLASS_SCORES, f"{target.column}_{PROBABILITY}")
    scores = {n: np.asarray(predictions.columns[n], np.float64) for n in names}
    return {
        **scores,
        "truth": target.values(split),
        PREDICTED: best.astype(np.float64),
        PROBABILITY: scores[names[-1]],
    }


def assemble_classes(
    predictions: Predictions,
    summary: ClassSummary,
    split: Split,
    trained: TrainedRun,
    *,
    other_priors: Mapping[str, ClassSummary],
) -> ClassContent:
    """Gathers what a report of classes shows; see `assemble`."""
    truth = trained.target.values(split)
    rows = gallery_rows(np.asarray(predictions.columns["log_loss"], np.float64))
    found = predictions.densities_of([row for _, row in rows])
    frame = _frame(predictions, summary, split, trained, other_priors)
    if unseen := trained.target.unseen_text(split):
        frame["notes"].append(f"{unseen}.")
    return ClassContent(
        **frame,
        gallery=[
            ClassObject(
                place=place, sample=split[row], truth=int(truth[row]), probability=probability
            )
            for (place, row), probability in zip(rows, found, strict=True)
        ],
    )


def _worst(columns: Columns, split: Split, target: Target) -> TextTable:
    """The objects of largest |d|, with links to the sky where the index has positions."""
    rows = worst_rows(columns, _NUM_WORST, target)
    known = {name: np.asarray(values)[rows] for name, values in columns.items()}
    residual = scaled_residual(known["z_mean"], known["redshift"], target)
    kinds = [[KINDS[kind]] for kind in kinds_of(known)] if target.thresholds else [[]] * len(rows)
    positions = _positions(split)
    links = ["" if positions is None else sky_link(*positions[row]) for row in rows]
    numbers = [known[n] for n in ("redshift", "z_mean", "z_std", "pit")]
    return TextTable(
        caption=f"The {len(rows)} objects of largest |d|",
        head=[
            *("object", target.symbol, target.mean, target.public("z_std"), "PIT", "d"),
            *(["kind"] if target.thresholds else []),
            "sky",
        ],
        rows=[
            [
                str(known["sample_id"][number]),
                *(f"{values[number]:.4f}" for values in numbers),
                f"{residual[number]:+.4f}",
                *kinds[number],
                "Aladin" if links[number] else "",
            ]
            for number in range(len(rows))
        ],
        links=links,
    )


def _positions(split: Split) -> Floats | None:
    """Right ascension and declination, float64 (N, 2), where the index has numbers of them."""
    if not {"ra", "dec"} <= set(split.dataset.columns):
        return None
    try:
        return np.stack([split.numbers("ra"), split.numbers("dec")], axis=1)
    except UsageError:
        return None


def sky_link(ra_deg: float, dec_deg: float) -> str:
    """Address of a picture of the sky at a position in degrees; empty if it is impossible."""
    if not possible_positions(np.array([[ra_deg, dec_deg]]))[0]:
        return ""
    # A plus sign in an address is a space.
    sign = "-" if dec_deg < 0 else "%2B"
    target = f"{ra_deg:.6f}%20{sign}{abs(dec_deg):.6f}"
    return f"https://aladin.cds.unistra.fr/AladinLite/?target={target}&fov=0.03"


def _facts(
    origin: Mapping[str, Any], split: Split, num_known: int, noun: str
) -> list[tuple[str, str]]:
    """What was evaluated on what."""
    now = datetime.datetime.now(datetime.UTC)
    weighting = origin["weighting"]
    weights = "without weights" if weighting == "none" else f"with {weighting} weights"
    return [
        ("run", str(origin["run"])),
        (
            "checkpoint",
            f"{origin['checkpoint']}: step {origin['step']:,}, epoch {origin['epochs']}",
        ),
        ("data set", f"{origin['data']} ({origin['fingerprint']})"),
        ("prior", f"{origin['prior']}; trained {weights}"),
        ("split", f"{split.name}: {len(split):,} samples"),
        (f"objects with known {noun}", f"{num_known:,}"),
        ("made", f"{now:%Y-%m-%d %H:%M} UTC by mstrain {msdata.__version__}"),
    ]


def _notes(origin: Mapping[str, Any], split: Split, trained_on: str) -> list[str]:
    """What the reader should know before the numbers."""
    if origin["fingerprint"] != trained_on:
        return [
            *(f"Other pixels than in training: {text}." for text in origin["pixel_differences"]),
            f"The run was trained on another data set ({trained_on}); objects that are in both may "
            "flatter it.",
        ]
    if split.name == "train":
        return ["These are the samples that the network was trained on: the numbers flatter it."]
    if split.name == "val" and origin["checkpoint"] == "best":
        return ["The checkpoint was chosen by the loss on these samples: the numbers flatter it."]
    return []
