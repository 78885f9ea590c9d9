"""Networks and catalogs on the same objects: metrics, and paired differences to the first row.

Table work in one process: predictions are read, not made. A row is a table of predictions, whose
densities have scores there, or a column of photometric redshifts: with an error it counts as a
Gaussian, not cut at 0, with all metrics in closed form; without one it gets point metrics only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.catalog.values import REDSHIFT_RANGE
from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.errors import UsageError
from mstrain.comparison.columns import column_names, places_of, read_columns
from mstrain.comparison.expression import PLACEHOLDERS, Expression, parse_expression
from mstrain.comparison.paired import Row, Scored, score_rows
from mstrain.comparison.section import draw_sample, published_section
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.gaussian import gaussian_scores
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import page_with_section

FORMAT_VERSION = 1
ALL = "all"
_JSON_MARK = b'"comparison": {'
_MIN_OBJECTS = 10


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """What is compared, and how.

    Attributes:
        columns: photometric redshifts of catalogs: a column, or `column:error`.
        samples: `NAME=EXPRESSION`, or "all"; empty means "all".
        split: where RUN is a folder, its predictions for this split.
        data: data set that has the columns the tables lack; None takes the one that was predicted,
            if it is still there.
        redshift_edges: edges of the bins of the figures; empty chooses round numbers.
        bootstrap: how intervals are made.
        has_report: also write `compare.html`.
    """

    columns: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    split: str = "test"
    data: Path | None = None
    redshift_edges: tuple[float, ...] = ()
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    has_report: bool = True

    def __post_init__(self) -> None:
        edges = self.redshift_edges
        if edges and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
            raise UsageError("--redshift-edges must ascend, at least two of them")
        if len({*self.columns}) != len(self.columns):
            raise UsageError("--column must name each column once")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        samples: by sample's name.
        notes: what was left out, with counts.
        json_path: `compare.json`.
        report: `compare.html`; None where none was asked for.
    """

    samples: Mapping[str, Scored]
    notes: tuple[str, ...]
    json_path: Path
    report: Path | None


def compare(
    tables: Sequence[Path | str],
    out: Path | str | None = None,
    **options: Any,
) -> Comparison:
    """Compares networks and catalogs on the same objects.

    `mstrain compare RUN ...` writes the same files.

        found = mstrain.compare(["RUN-A", "RUN-B"], columns=["photoz_strm:photoz_strm_err"])
        found.samples["all"].differences["RUN-B"]["nmad"]

    Args:
        tables: runs that `evaluate` has measured, or tables of predictions with redshifts.
        out: folder of the results; None means the first table's.
        **options: fields of `mstrain.comparison.compare.ComparisonConfig`: columns, samples, split
            ("test"), data, redshift_edges, bootstrap, has_report (True).

    Returns:
        Metrics and differences with intervals, and the paths of the files.

    Raises:
        UsageError: a table, a column or an expression does not fit, or a sample is too small.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = ComparisonConfig(**options)
    if config.has_report:
        check_installed()
    samples = _parse_samples(config.samples or (ALL,))
    paths = [Path(table) for table in tables]
    paths = [p / f"predictions-{config.split}.parquet" if p.is_dir() else p for p in paths]
    if not paths:
        raise UsageError("mstrain compare must have at least one RUN or PREDICTIONS.parquet")
    folder = paths[0].parent if out is None else Path(out)
    check_output(folder / "compare.json", _JSON_MARK)
    check_output(folder / "compare.html", PAGE_MARK if config.has_report else _JSON_MARK)
    opened = [read_predictions(path) for path in paths]
    for predictions in opened:
        _check_table(predictions)
    chosen = _common_rows(opened)
    notes = [
        f"{len(table) - len(rows):,} of {len(table):,} objects of {table.path} are not in every "
        "table with a known redshift: left out."
        for table, rows in zip(opened, chosen, strict=True)
        if len(table) > len(rows)
    ]
    wanted = [name for column in config.columns for name in column_names(column)]
    wanted += [name for e in samples.values() if e is not None for name in e.names]
    columns = read_columns(opened[0], chosen[0], wanted, config.data, notes)
    rows = _network_rows(opened, chosen)
    for text in config.columns:
        rows.append(_catalog_row(text, columns, rows))
    truth_N = np.asarray(opened[0].columns["redshift"], np.float64)[chosen[0]]
    found = {
        name: _sample(name, expression, rows, truth_N, columns, config, notes)
        for name, expression in samples.items()
    }
    make_folder(folder)
    return _write(folder, found, opened, notes, config)


def _parse_samples(texts: Sequence[str]) -> dict[str, Expression | None]:
    """Expressions by name; None takes all objects."""
    found: dict[str, Expression | None] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        name = name.strip()
        if not name or not name.isprintable() or (not equals and name != ALL):
            raise UsageError(f"--sample must be NAME=EXPRESSION or {ALL}, got {text!r}")
        if name in found:
            raise UsageError(f"--sample must give each sample its own name, got {name!r} twice")
        found[name] = parse_expression(rest) if equals else None
    return found


def _check_table(predictions: Predictions) -> None:
    """Refuses tables of anything but redshifts that are known."""
    target = predictions.origin.get("target", "redshift")
    name = target.get("name") if isinstance(target, Mapping) else target
    lacking = [n for n in ("redshift", "crps", "pit") if n not in predictions.columns]
    if name not in (None, "redshift") or lacking:
        raise UsageError(
            f"{predictions.path} must hold densities of redshifts beside the true ones, got "
            + (f"target {name!r}" if name not in (None, "redshift") else f"no {lacking[0]!r}")
            + "; compare what 'mstrain evaluate' wrote"
        )


def _common_rows(opened: Sequence[Predictions]) -> list[NDArray[np.int64]]:
    """Rows of each table of the objects that all have, with known redshifts, in the same order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = [pa.array(p.columns["sample_id"], pa.string()) for p in opened]
    for predictions, column in zip(opened, ids, strict=True):
        if len(pc.unique(column)) != len(column):
            raise UsageError(f"{predictions.path} has two rows of one sample_id; predict one split")
    truth_N = np.asarray(opened[0].columns["redshift"], np.float64)
    rows = [np.arange(len(truth_N)), *(places_of(ids[0], other) for other in ids[1:])]
    is_common_N = np.isfinite(truth_N) & np.logical_and.reduce([r >= 0 for r in rows])
    found = [r[is_common_N] for r in rows]
    for predictions, places in zip(opened[1:], found[1:], strict=True):
        other = np.asarray(predictions.columns["redshift"], np.float64)[places]
        num_other = int((other != truth_N[is_common_N]).sum())
        if num_other:
            raise UsageError(
                f"{predictions.path} and {opened[0].path} have different redshifts for "
                f"{num_other:,} of {len(other):,} objects of the same id; compare tables of one "
                "catalog"
            )
    if not is_common_N.any():
        raise UsageError(
            f"no object with a known redshift is in all of {', '.join(str(p.path) for p in opened)}"
        )
    return found


def _network_rows(opened: Sequence[Predictions], chosen: Sequence[NDArray[np.int64]]) -> list[Row]:
    rows: list[Row] = []
    for predictions, places in zip(opened, chosen, strict=True):
        columns = {
            name: np.asarray(predictions.columns[name], np.float64)[places]
            for name in (POINT_ESTIMATES[0], "pit", "crps", "cde_loss")
        }
        origin = predictions.origin
        name = Path(str(origin.get("run") or predictions.path)).name
        if origin.get("calibration", "none") != "none":
            name += f", {origin['calibration']} calibration"
        rows.append(
            Row(
                name=_free(name, rows),
                what=f"{predictions.path}: mean of the density, prior {origin.get('prior')}",
                estimate=columns.pop(POINT_ESTIMATES[0]),
                scores=columns,
            )
        )
    return rows


def _free(name: str, rows: Sequence[Row]) -> str:
    taken, found, number = {row.name for row in rows}, name, 2
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    return found


def _catalog_row(text: str, columns: Mapping[str, NDArray[Any]], rows: Sequence[Row]) -> Row:
    name, *error = column_names(text)
    values = [columns[n] for n in (name, *error)]
    for n, found in zip((name, *error), values, strict=True):
        if found.dtype == object:
            raise UsageError(f"--column {n} must hold numbers, got text")
    low, high = REDSHIFT_RANGE
    with np.errstate(invalid="ignore"):
        is_known_N = (values[0] >= low) & (values[0] <= high) & ~np.isin(values[0], PLACEHOLDERS)
        if error:
            is_known_N &= np.isfinite(values[1]) & (values[1] > 0)
    return Row(
        name=_free(name, rows),
        what=f"column {name}" + (f", a Gaussian of width {error[0]}" if error else ", no errors"),
        estimate=np.where(is_known_N, values[0], np.nan),
        error=np.where(is_known_N, values[1], np.nan) if error else None,
    )


def _sample(
    name: str,
    expression: Expression | None,
    rows: Sequence[Row],
    truth_N: Floats,
    columns: Mapping[str, NDArray[Any]],
    config: ComparisonConfig,
    notes: list[str],
) -> Scored:
    """One sample: the objects that pass and that every row knows."""
    is_in_N = np.ones(len(truth_N), bool)
    if expression is not None:
        is_in_N, num_unknown = expression.evaluate({"sample_id": columns["sample_id"], **columns})
        if num_unknown:
            notes.append(
                f"sample {name}: {num_unknown:,} objects lack a value that {expression.text!r} "
                "needs: left out."
            )
    is_shown_N = is_in_N.copy()
    for row in rows:
        lacks_N = is_in_N & ~np.isfinite(row.estimate)
        is_shown_N &= ~lacks_N
        if lacks_N.any():
            notes.append(
                f"sample {name}: {int(lacks_N.sum()):,} of {int(is_in_N.sum()):,} objects have no "
                f"usable value of {row.name}: left out of every row."
            )
    if is_shown_N.sum() < _MIN_OBJECTS:
        raise UsageError(
            f"sample {name!r} has {int(is_shown_N.sum())} objects that every row knows, fewer "
            f"than {_MIN_OBJECTS}; widen it"
        )
    truth, kept = truth_N[is_shown_N], [row.of(is_shown_N) for row in rows]
    for number, row in enumerate(kept):
        if row.error is not None:
            scores = gaussian_scores(row.estimate, row.error, truth)
            kept[number] = replace(row, scores=scores)
    return score_rows(kept, truth, config.bootstrap)


def _write(
    folder: Path,
    found: Mapping[str, Scored],
    opened: Sequence[Predictions],
    notes: Sequence[str],
    config: ComparisonConfig,
) -> Comparison:
    result = Comparison(
        samples=found,
        notes=tuple(notes),
        json_path=folder / "compare.json",
        report=folder / "compare.html" if config.has_report else None,
    )
    content = {
        "format_version": FORMAT_VERSION,
        "comparison": {name: scored.as_dict() for name, scored in found.items()},
        "samples": list(config.samples or (ALL,)),
        "notes": list(notes),
        "origins": [dict(p.origin) for p in opened],
        "bootstrap": vars(config.bootstrap),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    write_whole(result.json_path, text.encode() + b"\n")
    if result.report is not None:
        page = None
        for number, (name, scored) in enumerate(found.items()):
            body = draw_sample(scored, config.bootstrap, config.redshift_edges)
            page = page_with_section(page, f"sample-{number}", f"Sample {name}", body)
        page = page_with_section(page, "published", "Published figures", published_section(notes))
        write_whole(result.report, page.encode())
    return result
