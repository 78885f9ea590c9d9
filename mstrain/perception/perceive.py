"""What a network perceives, measured on all ranks: JSON, a table, and a section of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.core.files import whole_file, write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.data.columns import find_magnitude
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.inference import origin_of
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import page_with_section
from mstrain.evaluation.run_info import (
    TrainedRun,
    check_data,
    check_labels,
    find_prior,
    open_run,
)
from mstrain.evaluation.variants import Variant
from mstrain.models.heads import bin_edges
from mstrain.perception.exchange import PerceptionConfig
from mstrain.perception.measure import BASE, measure, modalities_of
from mstrain.perception.scores import (
    Resampled,
    in_bins,
    score_table,
    shapley_table,
    with_marginal,
)
from mstrain.perception.section import draw_section
from mstrain.training.checkpoint import step_names

FORMAT_VERSION = 1
_JSON_MARK = b'"perception": {'
_TABLE_MARK = b"perceive.mstrain"


@dataclass(frozen=True, kw_only=True)
class Perception:
    """Scores of some runs, and where they were written.

    Attributes:
        result: plain values, as in the JSON file.
        json_path: `perceive-SPLIT.json`.
        tables: `perceive-SPLIT.parquet`, one a run: "perceive-SPLIT-2.parquet" for the second.
        report: the page with the section; None if none was drawn.
    """

    result: Mapping[str, Any]
    json_path: Path
    tables: tuple[Path, ...]
    report: Path | None


def perceive_on_ranks(
    runs: Sequence[Path], data: Path, out: Path, config: PerceptionConfig, ranks: Ranks
) -> Perception | None:
    """Measures which bands matter to runs; all ranks call it.

    Args:
        runs: folders of trainings, compared side by side on the same samples.
        data: the data set's folder.
        out: folder of the results; made if it is not there.
        config: what is exchanged, and how.
        ranks: this rank among the others.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        UsageError: the runs, the data or the options do not go together.
        DataError: something is damaged, or no sample has a known redshift.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check(runs, data, out, config)) or {}
    split = msdata.open(data).split(config.split)
    within = within_of(split, config)
    given: list[tuple[TrainedRun, list[tuple[int, dict[str, NDArray[Any]]]]]] = []
    for run in runs:
        measured = []
        for which in _checkpoints(run, config.checkpoint):
            trained = open_run(run, which)
            prior = find_prior(trained, config.prior)
            columns = measure(trained, split, ranks, prior, config, within)
            measured.append((trained.step, columns or {}))
        given.append((trained, measured))
    made: list[Perception] = []
    ranks.on_first(lambda: made.append(_conclude(given, split, out, config, differences)))
    return made[0] if made else None


def within_of(split: Split, config: PerceptionConfig) -> str | None:
    """The column of the index whose neighbors exchange; None exchanges among all."""
    if config.within != "magnitude":
        return None if config.within == "none" else config.within
    within, why_not = find_magnitude(split, config.magnitude_column)
    if within is None:
        raise UsageError(f"cannot exchange within magnitude: {why_not}")
    return within


def _checkpoints(run: Path, asked: str) -> list[str]:
    """Names of the checkpoints to measure, the one that counts last."""
    names = step_names(run) if asked == "all" else []
    return names or ["last" if asked == "all" else asked]


def _check(
    runs: Sequence[Path], data: Path, out: Path, config: PerceptionConfig
) -> dict[str, list[str]]:
    """Refuses what cannot end well, before hours of computing; gives differences of pixels."""
    if config.has_report:
        check_installed()
    opened, found = msdata.open(data), {}
    opened_runs = [open_run(run, _checkpoints(run, config.checkpoint)[-1]) for run in runs]
    for run, trained in zip(runs, opened_runs, strict=True):
        check_data(trained, opened, [config.split])
        find_prior(trained, config.prior)
        found[str(run)] = check_pixels(
            trained, opened, [config.split], is_told=config.has_any_pixels
        )
    split = opened.split(config.split)
    for trained in opened_runs:
        check_labels(trained, split)
    _check_targets(opened_runs)
    if len(split) <= 2 * config.num_permutations:
        raise UsageError(
            f"split {split.name!r} must have more than {2 * config.num_permutations} samples for "
            f"{config.num_permutations} permutations, got {len(split)}"
        )
    within_of(split, config)
    check_output(out / f"perceive-{split.name}.json", _JSON_MARK)
    for path in _table_paths(out, split, len(runs)):
        check_output(path, _TABLE_MARK)
    if config.has_report:
        check_output(out / "report.html", PAGE_MARK)
    make_folder(out)
    return found


def _check_targets(runs: Sequence[TrainedRun]) -> None:
    """Raises UsageError where runs tell classes, or not the same."""
    for run in runs:
        if run.target.classes:
            raise UsageError(
                f"cannot perceive {run.path}: it tells classes of {run.target.column}, and scores "
                "are those of densities of a number"
            )
        if run.target.as_dict() != runs[0].target.as_dict():
            raise UsageError(
                f"cannot compare {runs[0].path} and {run.path}: they tell "
                f"{runs[0].target.column} and {run.target.column}; give runs of one target"
            )


def _table_paths(out: Path, split: Split, count: int) -> list[Path]:
    names = [f"perceive-{split.name}{'' if n == 1 else f'-{n}'}" for n in range(1, count + 1)]
    return [out / f"{name}.parquet" for name in names]


def _conclude(
    given: Sequence[tuple[TrainedRun, list[tuple[int, dict[str, NDArray[Any]]]]]],
    split: Split,
    out: Path,
    config: PerceptionConfig,
    differences: Mapping[str, list[str]],
) -> Perception:
    """Scores, files and section of measured runs."""
    tables = _table_paths(out, split, len(given))
    entries, resampled = [], []
    for (run, measured), path in zip(given, tables, strict=True):
        prior = find_prior(run, config.prior)
        origin = origin_of(run, [split], Variant(prior=prior), differences.get(str(run.path), ()))
        entry, found = _run_entry(run, measured, config)
        entries.append({"origin": origin, **entry})
        resampled.append(found)
        shown = {run.target.public(name): found for name, found in measured[-1][1].items()}
        _write_table(path, shown, origin)
    settings = {n: v for n, v in asdict(config).items() if n not in ("is_quiet", "has_report")}
    result = {
        "format_version": FORMAT_VERSION,
        "perception": {"settings": settings, "runs": entries},
        "differences": _differences(entries, resampled),
    }
    json_path = out / f"perceive-{split.name}.json"
    content = json.dumps(_plain(result), indent=1, allow_nan=False)
    write_whole(json_path, content.encode() + b"\n")
    report = out / "report.html" if config.has_report else None
    if report is not None:
        page = report.read_text(encoding="utf-8") if report.exists() else None
        made = page_with_section(
            page, "perceive", "What the network perceives", draw_section(result)
        )
        write_whole(report, made.encode())
    return Perception(
        result=json.loads(content), json_path=json_path, tables=tuple(tables), report=report
    )


def _run_entry(
    run: TrainedRun,
    measured: list[tuple[int, dict[str, NDArray[Any]]]],
    config: PerceptionConfig,
) -> tuple[dict[str, Any], Resampled]:
    """What is said of a run, and the resamplings of its losses."""
    bands, players = modalities_of(run, config)
    modalities = [*bands, *players]
    edges = bin_edges(run.config.model).numpy()
    names = sorted({key.partition("|")[2] for key in measured[-1][1] if "|" in key} - {BASE})
    known = [(step, with_marginal(columns, edges, run.target)) for step, columns in measured]
    columns = known[-1][1]
    resampled = Resampled(columns, names, config.bootstrap)
    redshift_edges = np.array(config.redshift_edges or round_edges(columns["redshift"], 8))
    entry: dict[str, Any] = {
        "fusion": run.config.augment.fusion,
        "note": "" if modalities else "n/a: early fusion has no features of a survey",
        "num_samples": len(columns["redshift"]),
        "num_unlabelled": len(measured[-1][1]["redshift"]) - len(columns["redshift"]),
        "scores": score_table(columns, modalities, resampled, run.target),
        "shapley": shapley_table([p.name for p in players], resampled) if players else None,
        "bins": in_bins(columns, modalities, redshift_edges, config.bootstrap),
    }
    if config.checkpoint == "all":
        entry["checkpoints"] = []
        for step, found in known:
            at_step = Resampled(found, [m.name for m in modalities], config.bootstrap, ("crps",))
            scores = {m.name: at_step.estimate(at_step.by_task("crps", m.name)) for m in modalities}
            entry["checkpoints"].append({"step": step, "by_task": scores})
    return entry, resampled


def _differences(
    entries: Sequence[Mapping[str, Any]], resampled: Sequence[Resampled]
) -> list[dict[str, Any]]:
    """Scores by task (CRPS) of later runs minus the first's, paired by object."""
    found = []
    for entry, other in zip(entries[1:], resampled[1:], strict=True):
        scores = {}
        for name in entry["scores"]["crps"]["modalities"]:
            if name in entries[0]["scores"]["crps"]["modalities"]:
                change = other.by_task("crps", name) - resampled[0].by_task("crps", name)
                scores[name] = other.estimate(change)
        found.append({"run": entry["origin"]["run"], "by_task": scores})
    return found


def _plain(value: Any) -> Any:
    """Values as JSON has them: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_table(
    path: Path, columns: Mapping[str, NDArray[Any]], origin: Mapping[str, Any]
) -> None:
    """One row per sample: its losses with each modality exchanged; NaN as null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    table = pa.table({name.replace("|", ":"): values for name, values in arrays.items()})
    metadata = {_TABLE_MARK: json.dumps(_plain(dict(origin))).encode()}
    with whole_file(path) as file:
        pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")
