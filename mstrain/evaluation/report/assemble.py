"""From a table of predictions, its metrics and its run to the report's content."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import msdata
from msdata.dataset.dataset import Split
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.predictions import Predictions
from mstrain.evaluation.report.content import Content, GalleryObject, gallery_rows
from mstrain.evaluation.report.wording import prior_table


def assemble(
    predictions: Predictions,
    summary: Summary,
    split: Split,
    *,
    other_priors: Mapping[str, Summary],
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
        journal: lines of the run's metrics.jsonl.
        settings: settings of the run.
        trained_on: fingerprint of the data set of the training.

    Raises:
        DataError: a sample of the gallery is damaged.
    """
    columns, origin = predictions.columns, predictions.origin
    places = gallery_rows(np.asarray(columns["crps"], np.float64))
    densities = predictions.densities_of([row for _, row in places])
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
        gallery=[
            GalleryObject(
                place=place,
                sample=split[row],
                values={name: values[row] for name, values in columns.items()},
                density=density,
            )
            for (place, row), density in zip(places, densities, strict=True)
        ],
        journal=journal,
        settings=settings,
    )


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
