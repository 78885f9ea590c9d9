"""Ranks training labels by how suspect they are, and finds what a density rests on.

attribution.parquet         a row per training object in the order of the index: label, scores,
                            `suspicion_rank`, and `residual`, a list of float16
attribution-hidden.parquet  what enters the last layer, lists of float32, in the same order
suspects.csv                the most suspect, for `mstrain train --without`
arguments.csv, for-N.png    the training objects that argue for and against the asked ones' labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import msdata
from msdata.core.output_file import PNG_MARK, check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.attribution.last_layer import (
    CRPS,
    LOSS,
    MARGIN,
    PIT,
    Columns,
    check_head,
    gathered,
    run_pass,
)
from mstrain.attribution.results import (
    ARGUMENTS,
    HIDDEN,
    HIDDEN_TABLE,
    OUT_OF_FOLD,
    RANK,
    RESIDUAL,
    SUSPECTS,
    TABLE,
    Asked,
    Attribution,
    conclude,
    ranked_by,
    ranks_of,
    sheet_path,
)
from mstrain.checks import check_batch_size, check_range
from mstrain.data.left_out import left_out
from mstrain.data.pixels import check_pixels
from mstrain.data.share import part_of, training_split
from mstrain.distributed import Ranks, one_rank
from mstrain.evaluation.inference import DEFAULT_BATCH, network_of, origin_of
from mstrain.evaluation.list_table import (
    Spool,
    SpooledRows,
    index_column,
    write_list_table,
)
from mstrain.evaluation.run_info import TrainedRun, check_data, open_run
from mstrain.models.model_file import results_folder
from mstrain.training.checkpoint import checkpoint_sha256

MARK, _ARGUMENT_MARK = b'"attributed_by"', b'"argues","place"'
_MAX_ASKED, _MAX_TOP = 100, 100_000


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """What is attributed, and how.

    Attributes:
        asked: ids of objects, of any split, whose arguments are wanted.
        by_self: rank by self-influence, not by margin.
        top: suspects in `suspects.csv`, and arguments on each side.
        out_of_fold: runs with `data.fold`, all folds of one number, that judge what they left out.
        checkpoint: "best" or "last".
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time.
        is_quiet: show no progress.
    """

    asked: Sequence[str] = ()
    by_self: bool = False
    top: int = 20
    out_of_fold: Sequence[Path | str] = ()
    checkpoint: str = "best"
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    is_quiet: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_range("--top", self.top, 1)
        if self.top > _MAX_TOP or len(self.asked) > _MAX_ASKED:
            raise UsageError(
                f"--top must be at most {_MAX_TOP:,} and --for name at most {_MAX_ASKED} objects, "
                f"got {self.top:,} and {len(self.asked)}"
            )


def attribute(
    run: Path | str,
    data: Path | str,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> Attribution:
    """Ranks training labels by how suspect they are, and finds what a density rests on.

    `mstrain attribute RUN DATA` writes the same files.

        found = mstrain.attribute("RUN", "DATA", out_of_fold=["FOLD-0", "FOLD-1"], asked=["id"])
        found.suspects[0]["sample_id"]

    Args:
        run: the run's folder, or a model file of `mstrain.export`.
        data: folder of the data set that it was trained on.
        out: folder of the tables and sheets; None means the run's.
        device: "auto", "cpu" or "cuda".
        **options: fields of `AttributionConfig`: asked, by_self, top (20), out_of_fold,
            checkpoint, has_any_pixels, batch_size (256), is_quiet.

    Returns:
        The most suspect labels, and the arguments for and against the objects asked for.

    Raises:
        UsageError: runs, data or options do not go together, or a launcher started several ranks.
        DataError: something is damaged.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = AttributionConfig(**options)
    folder = results_folder(None if out is None else Path(out), Path(run))
    with one_rank("attribute", device) as ranks:
        found = attribute_on_ranks(Path(run), Path(data), folder, config, ranks)
    assert found is not None
    return found


def attribute_on_ranks(
    run: Path, data: Path, out: Path, config: AttributionConfig, ranks: Ranks
) -> Attribution | None:
    """Writes tables and sheets; all ranks call it.

    Args:
        run: the run's folder, or a model file.
        data: folder of the data set that it was trained on.
        out: folder of the results.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        What was found, on the first rank; None on the others.

    Raises:
        UsageError: runs, data or options do not go together, or the network has another head.
        DataError: something is damaged.
        StorageError: the file system refused.
    """
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    folds = [open_run(path, config.checkpoint) for path in config.out_of_fold]
    differences = ranks.on_first(lambda: _check(trained, folds, opened, out, config))
    split = training_split(opened, trained.config)
    unseen = _out_of_fold(folds, opened.split("train"), config, ranks)
    origin = {
        "format_version": 1,
        **origin_of(trained, [split], None, differences or ()),
        "checkpoint_sha256": checkpoint_sha256(run, config.checkpoint),
        "out_of_fold": [str(fold.path.absolute()) for fold in folds],
        "splits": ["train"],
        "attributed_by": "last layer",
    }
    scores = _write_gradients(trained, split, unseen, out, origin, config, ranks)
    asked = _asked(trained, opened, config, ranks)
    if not ranks.is_first:
        return None
    label = trained.target.column
    return conclude(scores, asked, split, out, label, top=config.top, by_self=config.by_self)


def _check(
    run: TrainedRun,
    folds: Sequence[TrainedRun],
    data: msdata.Dataset,
    out: Path,
    config: AttributionConfig,
) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    if data.manifest.fingerprint != run.fingerprint:
        raise UsageError(
            f"DATA must be the data set that {run.path} was trained on, {run.data} with "
            f"fingerprint {run.fingerprint}, got {data.path}, {data.manifest.fingerprint}"
        )
    check_data(run, data, ["train"])
    check_folds(folds, run)
    find_asked(data, config.asked)
    files = {TABLE: MARK, HIDDEN_TABLE: MARK, SUSPECTS: RANK.encode()}
    if config.asked:
        sheets = [sheet_path(out, number) for number in range(len(config.asked))]
        files |= {ARGUMENTS: _ARGUMENT_MARK, **{sheet.name: PNG_MARK for sheet in sheets}}
    for name, mark in files.items():
        check_output(out / name, mark)
    differences = check_pixels(run, data, ["train"], is_told=config.has_any_pixels)
    make_folder(out.absolute())
    return differences


def check_folds(runs: Sequence[TrainedRun], judged: TrainedRun) -> None:
    """Raises UsageError unless runs leave out all folds of one number, of the data of `judged`."""
    if not runs:
        return
    if judged.config.data.label_noise or any(run.config.data.label_noise for run in runs):
        raise UsageError(
            "cannot judge labels out of fold that data.label_noise has exchanged: a fold's run has "
            "not exchanged the same ones; plant mislabels in the catalog instead"
        )
    folds = [run.config.data.fold for run in runs]
    for run, fold in zip(runs, folds, strict=True):
        if fold is None or run.fingerprint != judged.fingerprint or run.target != judged.target:
            raise UsageError(
                f"--out-of-fold must name runs of {judged.data} and the same target with a "
                f"data.fold, got {run.path} of {run.data} with data.fold={fold}"
            )
    count = str(folds[0]).partition("/")[2]
    wanted = [f"{n}/{count}" for n in range(int(count))]
    if sorted(map(str, folds)) != sorted(wanted):
        missing = [fold for fold in wanted if fold not in folds]
        raise UsageError(
            f"--out-of-fold must name a run for each of {', '.join(wanted)} once, got "
            f"{', '.join(map(str, folds))}; missing: {', '.join(missing) or 'none'}"
        )


def _out_of_fold(
    runs: Sequence[TrainedRun], train: Split, config: AttributionConfig, ranks: Ranks
) -> Columns:
    """Scores of all of split "train" by the run that left each out; empty on other ranks."""
    table: Columns = {}
    for run in runs:
        is_left = left_out(train, type(run.config.data)(fold=run.config.data.fold)).mask
        if not is_left.any():
            continue
        part = part_of(train, np.flatnonzero(is_left))
        mine = run_pass(
            *(run, part, ranks),
            batch_size=config.batch_size,
            is_quiet=config.is_quiet,
            what=f"fold {run.config.data.fold}",
        )
        for name, values in gathered(mine, len(part), ranks).items():
            if name in (LOSS, MARGIN, CRPS, PIT):
                whole = table.setdefault(OUT_OF_FOLD + name, np.full(len(train), np.nan))
                whole[is_left] = values
    return table


def _write_gradients(
    run: TrainedRun,
    split: Split,
    unseen: Columns,
    out: Path,
    origin: dict[str, Any],
    config: AttributionConfig,
    ranks: Ranks,
) -> Columns:
    """Writes both tables; gives the scores of all training objects, on the first rank."""
    num_hidden = check_head(network_of(run, ranks.device), run)
    num_bins, rank = run.config.model.num_bins, ranks.topology.rank
    with (
        Spool(out / TABLE, rank, num_bins, np.float16) as r_spool,
        Spool(out / HIDDEN_TABLE, rank, num_hidden, np.float32) as h_spool,
    ):
        for spool in (r_spool, h_spool):
            ranks.on_first(spool.open)
            if not ranks.is_first:
                spool.open()

        def keep(r_NK: NDArray[np.float16], h_ND: NDArray[np.float32]) -> None:
            r_spool.add(r_NK)
            h_spool.add(h_ND)

        mine = run_pass(
            *(run, split, ranks),
            batch_size=config.batch_size,
            is_quiet=config.is_quiet,
            sink=keep,
        )
        given = ranks.gather((r_spool.finish(mine["row"]), h_spool.finish(mine["row"]))) or []
        scores = gathered(mine, len(split), ranks)

        all_ids = split.dataset.split("train").table(["sample_id"]).column(0)

        def write() -> Columns:
            row = pc.index_in(index_column([split], "sample_id"), value_set=all_ids).to_numpy()
            found = scores | {name: values[row] for name, values in unseen.items()}
            found[RANK] = ranks_of(found[ranked_by(found, by_self=config.by_self)])
            label = run.target.column
            columns = {n: index_column([split], n) for n in ("sample_id", label)} | found
            residual = SpooledRows([r for r, _ in given], len(split), num_bins, np.float16)
            hidden = SpooledRows([h for _, h in given], len(split), num_hidden, np.float32)
            ids = {"sample_id": columns["sample_id"]}
            write_list_table(out / HIDDEN_TABLE, ids, HIDDEN, hidden, origin)
            write_list_table(out / TABLE, columns, RESIDUAL, residual, origin)
            return found

        return ranks.on_first(write) or {}


def find_asked(data: msdata.Dataset, ids: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of the objects that were asked for by split, ascending.

    Raises:
        UsageError: an id is unknown.
    """
    rows: dict[str, NDArray[np.int64]] = {}
    wanted, known = pa.array(ids, pa.string()), set[str]()
    for name in data.splits if ids else ():
        column = data.split(name).table(["sample_id"]).column(0)
        found = np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy())
        if len(found):
            rows[name] = found.astype(np.int64)
            known |= set(column.take(pa.array(found)).to_pylist())
    if absent := [i for i in ids if i not in known]:
        raise UsageError(f"{data.path} has no sample {', '.join(absent)}; give ids with --for")
    return rows


def _asked(
    run: TrainedRun, data: msdata.Dataset, config: AttributionConfig, ranks: Ranks
) -> dict[str, Asked]:
    """What is needed of each object that was asked for, on the first rank."""
    found: dict[str, Asked] = {}
    for name, rows in find_asked(data, config.asked).items():
        part = part_of(data.split(name), rows)
        kept: list[tuple[NDArray[Any], NDArray[Any]]] = []
        mine = run_pass(
            *(run, part, ranks),
            batch_size=config.batch_size,
            is_quiet=True,
            sink=lambda r, h, kept=kept: kept.append((r, h)),  # type: ignore[misc]
            has_stand_in=True,
        )
        for columns, pieces in ranks.gather((mine, kept)) or []:
            both = [np.concatenate(p) for p in zip(*pieces, strict=True)]
            for number, row in enumerate(columns["row"].tolist()):
                sample_id = part.sample_id(row)
                scores = {n: float(v[number]) for n, v in columns.items() if n != "row"}
                found[sample_id] = Asked(
                    sample_id=sample_id,
                    residual=both[0][number],
                    hidden=both[1][number],
                    scores=scores,
                )
    return found
