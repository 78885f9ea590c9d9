"""From a table of predictions, its metrics and its run to the report's content."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import msdata
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.outliers import KINDS, kinds_of
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.metrics.uncertainty import Uncertainty
from mstrain.evaluation.predictions import Predictions
from mstrain.evaluation.report.content import (
    Content,
    GalleryObject,
    gallery_rows,
    kind_rows,
    worst_rows,
)
from mstrain.evaluation.report.sky import possible_positions, sky_section
from mstrain.evaluation.report.wording import TextTable, prior_table

_NUM_WORST = 20


def assemble(
    predictions: Predictions,
    summary: Summary,
    split: Split,
    *,
    other_priors: Mapping[str, Summary],
    uncertainty: Uncertainty,
    journal: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    trained_on: str,
) -> Content:
    """Gathers what a report shows.

    Args:
        predictions: all samples of the split, in its order.
        summary: their metrics.
        split: from which the gallery's cutouts come.
        other_priors: metrics under other priors than the table's, by name.
        uncertainty: what the densities know of their errors.
        journal: lines of the run's metrics.jsonl.
        settings: settings of the run.
        trained_on: fingerprint of the data set of the training.

    Raises:
        DataError: a sample of the gallery is damaged.
    """
    columns, origin = predictions.columns, predictions.origin
    objects = [("", *found) for found in gallery_rows(np.asarray(columns["crps"], np.float64))]
    num_placed = len(objects)
    objects += kind_rows(columns)
    densities = predictions.densities_of([row for _, _, row in objects])
    shown = [
        GalleryObject(
            place=place,
            sample=split[row],
            values={name: values[row] for name, values in columns.items()},
            density=density,
            kind=KINDS.get(kind, ""),
        )
        for (kind, place, row), density in zip(objects, densities, strict=True)
    ]
    sky = sky_section(columns, _positions(split), split, summary.bootstrap)
    return Content(
        title=f"{origin['recipe'] or 'network'}: photometric redshifts of split {split.name}",
        facts=_facts(origin, split, summary),
        notes=_notes(origin, split, trained_on),
        columns=columns,
        edges=predictions.edges,
        stacked=predictions.mean_density(np.isfinite(columns["redshift"])),
        summary=summary,
        priors=prior_table(origin["prior"], summary, other_priors),
        schema=split.schema,
        gallery=shown[:num_placed],
        uncertainty=uncertainty,
        kinds=shown[num_placed:],
        worst=_worst(columns, split),
        sections=[] if sky is None else [sky],
        journal=journal,
        settings=settings,
    )


def _worst(columns: Columns, split: Split) -> TextTable:
    """The objects of largest |d|, with links to the sky where the index has positions."""
    rows = worst_rows(columns, _NUM_WORST)
    known = {name: np.asarray(values)[rows] for name, values in columns.items()}
    residual = scaled_residual(known["z_mean"], known["redshift"])
    kinds = kinds_of(known)
    positions = _positions(split)
    links = ["" if positions is None else sky_link(*positions[row]) for row in rows]
    numbers = [known[n] for n in ("redshift", "z_mean", "z_std", "pit")]
    return TextTable(
        caption=f"The {len(rows)} objects of largest |d|",
        head=["object", "z", "z_mean", "z_std", "PIT", "d", "kind", "sky"],
        rows=[
            [
                str(known["sample_id"][number]),
                *(f"{values[number]:.4f}" for values in numbers),
                f"{residual[number]:+.4f}",
                KINDS[kinds[number]],
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


def _facts(origin: Mapping[str, Any], split: Split, summary: Summary) -> list[tuple[str, str]]:
    now = datetime.datetime.now(datetime.UTC)
    return [
        ("run", str(origin["run"])),
        (
            "checkpoint",
            f"{origin['checkpoint']}: step {origin['step']:,}, epoch {origin['epochs']}",
        ),
        ("data set", f"{origin['data']} ({origin['fingerprint']})"),
        ("prior", _prior_fact(origin)),
        ("split", f"{split.name}: {len(split):,} samples"),
        ("objects with known redshift", f"{summary.num_samples:,}"),
        ("made", f"{now:%Y-%m-%d %H:%M} UTC by mstrain {msdata.__version__}"),
    ]


def _prior_fact(origin: Mapping[str, Any]) -> str:
    """Which prior the densities are under, and what the network was trained with."""
    if origin["weighting"] == "none":
        return f"{origin['prior']}; trained without weights"
    return f"{origin['prior']}; trained with {origin['weighting']} weights"


def _notes(origin: Mapping[str, Any], split: Split, trained_on: str) -> list[str]:
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
