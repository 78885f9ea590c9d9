"""The counts of a built catalog: a table for papers, provenance as JSON, redshift histograms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msdata import __version__
from msdata.catalog.build.build import BuiltCatalog, SurveyCounts
from msdata.catalog.build.disagreements import markdown_of
from msdata.catalog.build.recipe import Recipe
from msdata.catalog.build.select import STAR
from msdata.catalog.build.spec import CatalogSpec
from msdata.core.text import markdown_lines
from msdata.errors import needing

_BIN_WIDTH = 0.02


def count_rows(counts: Sequence[SurveyCounts]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: available, accepted, and every reason that occurs.

    Args:
        counts: one per survey.
    """
    reasons = list(dict.fromkeys(r for c in counts for r, n in c.num_dropped.items() if n))
    head = ["survey", "available", "accepted", *reasons]
    numbers = [
        [c.num_available, c.num_accepted, *(c.num_dropped.get(r, 0) for r in reasons)]
        for c in counts
    ]
    numbers.append([sum(column) for column in zip(*numbers, strict=True)])
    names = [*(c.name for c in counts), "all"]
    rows = [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, numbers, strict=True)]
    return head, rows


def report_lines(catalog: BuiltCatalog, spec: CatalogSpec) -> Iterator[str]:
    """The report as Markdown: the counts, the common cuts, what to cite."""
    head, rows = count_rows(catalog.counts)
    yield "# Spectroscopic sample"
    yield ""
    yield (
        f"{catalog.table.num_rows:,} objects with {spec.redshift_above:g} < z < "
        f"{spec.redshift_below:g} and declination above {spec.dec_above:g} degrees; no two within "
        f"{spec.separation_arcsec:g} arcsec. The better survey stands first. Other columns: rows "
        "dropped, each for the first reason it met."
    )
    yield ""
    yield from markdown_lines(head, rows)
    yield ""
    yield "| survey | files | citation | license |"
    yield "|---|---|---|---|"
    for task in spec.surveys:
        files = ", ".join(path.name for path in task.files)
        yield f"| {task.recipe.name} | {files} | {task.recipe.citation} | {task.recipe.license} |"
    yield from markdown_of(catalog.disputed, spec.disagreement_arcsec, spec.disagreement_above)


def report_json(
    catalog: BuiltCatalog, spec: CatalogSpec, sizes: dict[str, int], digest: str
) -> dict[str, Any]:
    """The content of `catalog.json`; no times, no hosts, so equal input gives equal bytes.

    Args:
        catalog: the catalog.
        spec: what was asked for.
        sizes: bytes of each input file, by name.
        digest: SHA-256 of `catalog.parquet`.
    """
    return {
        "format": "msdata-catalog",
        "format_version": 1,
        "msdata": __version__,
        "num_objects": catalog.table.num_rows,
        "sha256": digest,
        "spec": spec.to_json(),
        "notes": list(catalog.notes),
        "disagreements": [asdict(rate) for rate in catalog.disputed.rates],
        "surveys": [
            {
                "key": task.key,
                "name": task.recipe.name,
                "title": task.recipe.title,
                "files": {path.name: sizes[str(path)] for path in task.files},
                "where": task.recipe.where,
                "citation": task.recipe.citation,
                "licence": task.recipe.license,
                "cuts": _cuts(task.recipe, counts.left_out),
                "num_available": counts.num_available,
                "num_accepted": counts.num_accepted,
                "num_dropped": counts.num_dropped,
            }
            for task, counts in zip(spec.surveys, catalog.counts, strict=True)
        ],
    }


def _cuts(recipe: Recipe, left_out: Sequence[str]) -> list[dict[str, Any]]:
    """The survey's own cuts that were applied, and that on stars."""
    cuts = [
        {"column": list(cut.column), **cut.tests, "reason": cut.reason}
        for cut in recipe.cuts
        if cut.reason not in left_out
    ]
    if recipe.stars_below is not None:
        column, limit = list(recipe.redshifts[-1]), recipe.stars_below
        cuts.append({"column": column, "at_least": limit, "reason": STAR})
    return cuts


def check_figures() -> None:
    """Raises MissingPackageError unless figures can be drawn; before hours of work."""
    with needing("a redshift histogram needs matplotlib", "catalog", ", or give --no-figure"):
        import matplotlib  # noqa: F401


def draw_redshifts(
    table: pa.Table, surveys: Sequence[str], limits: tuple[float, float], file: IO[bytes]
) -> None:
    """Draws one panel for all objects, stacked by survey, and one with each survey's own shape.

    Args:
        table: with `redshift` and `survey`.
        surveys: names, in the order of the stack.
        limits: lowest and highest redshift of the axis.
        file: open for writing; gets a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_bins = max(1, round((limits[1] - limits[0]) / _BIN_WIDTH))
    edges = np.linspace(*limits, num_bins + 1)
    counts = {
        name: np.histogram(table.filter(pc.equal(table["survey"], name))["redshift"], edges)[0]
        for name in surveys
    }
    below = np.zeros(num_bins)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    whole, each = figure.subplots(2, 1, sharex=True)
    for name, count in counts.items():
        whole.stairs(below + count, edges, baseline=below, fill=True, label=name)
        below = below + count
    whole.set(ylabel=f"objects per bin of {edges[1] - edges[0]:.2f}")
    whole.legend(fontsize="small", ncols=2)
    for name, count in counts.items():
        if count.sum():
            each.stairs(count / count.max(), edges, label=f"{name} {count.sum():,}")
    each.set(xlabel="redshift", ylabel="share of the survey's fullest bin", xlim=limits)
    each.legend(fontsize="small", ncols=2)
    # The same data give the same bytes under every version of matplotlib.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
