"""What the tests of evaluation share: predictions out of thin air, and reports of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from msdata.schema import MANTIS_SHRIMP, Schema
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import Densities, make_densities
from mstrain.evaluation.metrics.scores import point_estimates, scores
from mstrain.evaluation.metrics.summary import summarize
from mstrain.evaluation.report.content import Content, GalleryObject

FEW = BootstrapConfig(num_replicates=50)


def honest_predictions(count: int, *, seed: int = 0, num_bins: int = 80) -> tuple[Any, Densities]:
    """Columns and densities of objects whose redshifts were drawn from their own densities."""
    random = np.random.default_rng(seed)
    sigma = random.uniform(0.02, 0.08, count)
    mean = random.uniform(0.2, 1.3, count)
    truth = np.clip(mean + sigma * random.standard_normal(count), 0.001, 1.599)
    edges = np.linspace(0, 1.6, num_bins + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    values = np.exp(-0.5 * ((centers - mean[:, None]) / sigma[:, None]) ** 2)
    found = make_densities(values / (values @ np.diff(edges))[:, None], edges)
    columns = {
        "sample_id": np.array([f"{i:07d}" for i in range(count)], object),
        "redshift": truth,
        **point_estimates(found),
        **scores(found, truth),
        "mag_r_ab": 17 + 2 * truth + random.normal(0, 0.3, count),
    }
    return columns, found


def journal_of(num_epochs: int) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    lines: list[dict[str, Any]] = []
    for epoch in range(num_epochs):
        place = {"epoch": epoch, "step": 10 * (epoch + 1)}
        lines.append({"kind": "step", "loss": 3.0 - 0.1 * epoch, **place})
        lines.append(
            {
                "kind": "epoch",
                "loss": 3.0 - 0.1 * epoch,
                "validation_loss": 3.1 - 0.05 * epoch,
                "samples_per_s": 1000.0,
                "data_wait_fraction": 0.004,
                "hit_rate": 0.0 if epoch == 0 else 0.5,
                "forecast_hit_rate": 0.0 if epoch == 0 else 0.5,
                **place,
            }
        )
    return lines


def content_of(
    columns: dict[str, np.ndarray], found: Densities, *, rows: list[int], **fields: Any
) -> Content:
    """A report's content, with a gallery of these rows in the default schema."""
    schema: Schema = fields.pop("schema", MANTIS_SHRIMP)
    random = np.random.default_rng(0)
    sample = {a.name: random.normal(5, 2, a.shape).astype(a.numpy_dtype) for a in schema.arrays}
    by = {"redshift": ("redshift", round_edges(columns["redshift"]))}
    if "mag_r_ab" in columns:
        by["magnitude"] = ("mag_r_ab", round_edges(columns["mag_r_ab"]))
    return Content(
        title="a run on some data",
        facts=fields.pop("facts", [("samples", str(len(found)))]),
        columns=columns,
        edges=found.edges,
        stacked=found.values.mean(axis=0),
        summary=summarize(columns, FEW, binned_by=by),
        schema=schema,
        gallery=[
            GalleryObject(
                place=0.5,
                sample=sample,
                values={name: values[row] for name, values in columns.items()},
                density=found.values[row],
            )
            for row in rows
        ],
        **fields,
    )
