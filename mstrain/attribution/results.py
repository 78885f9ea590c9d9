"""What is made of the scores: ranks of suspects, and the arguments for and against an object."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

import msdata
from msdata.core.files import write_whole
from msdata.dataset.dataset import Split
from msdata.describe.sheet import caption, draw_sheet, png_bytes, samples_by_id
from mstrain.attribution.last_layer import LOSS, MARGIN, SELF, Columns, strongest
from mstrain.evaluation.list_table import list_parts

TABLE, HIDDEN_TABLE = "attribution.parquet", "attribution-hidden.parquet"
SUSPECTS, ARGUMENTS = "suspects.csv", "arguments.csv"
RESIDUAL, HIDDEN, RANK = "residual", "hidden", "suspicion_rank"
OUT_OF_FOLD = "oof_"
# Of a sheet's rows; an object's line of text is cheap, its picture is not.
_MAX_DRAWN = 10
_CURE = "run 'mstrain attribute' again"


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What was found.

    Attributes:
        folder: where the files are.
        num_samples: training objects.
        num_unlabeled: those without a usable label, which have no rank.
        ranked_by: the column that ranks them.
        suspects: the most suspect, as in `suspects.csv`.
        arguments: as in `arguments.csv`.
        sheets: pictures, one per object asked for.
    """

    folder: Path
    num_samples: int
    num_unlabeled: int
    ranked_by: str
    suspects: list[dict[str, Any]]
    arguments: list[dict[str, Any]]
    sheets: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        paths = {"folder": str(self.folder), "sheets": [str(path) for path in self.sheets]}
        return {**asdict(self), **paths}


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """An object whose arguments are wanted.

    Attributes:
        sample_id: its id.
        residual: float16 (K,).
        hidden: what enters the last layer, float32 (D,).
        scores: see `run_pass`.
    """

    sample_id: str
    residual: NDArray[np.float16]
    hidden: NDArray[np.float32]
    scores: Mapping[str, float]


def ranked_by(scores: Columns, *, by_self: bool) -> str:
    """The column that ranks suspects, the largest first; docs/guides/labels.md has the measure."""
    if by_self:
        return SELF
    return OUT_OF_FOLD + MARGIN if OUT_OF_FOLD + MARGIN in scores else MARGIN


def ranks_of(score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the largest score; NaN where the score is."""
    order = np.argsort(-score_N, kind="stable")[: int(np.isfinite(score_N).sum())]
    rank = np.full(len(score_N), np.nan)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def sheet_path(out: Path, number: int) -> Path:
    """The picture of an object that was asked for; ids may hold anything."""
    return out / f"for-{number + 1}.png"


def conclude(
    scores: Columns,
    asked: Mapping[str, Asked],
    split: Split,
    out: Path,
    label: str,
    *,
    top: int,
    by_self: bool,
) -> Attribution:
    """Writes suspects, arguments and sheets beside the tables, on one rank.

    `scores` are of all training objects of `split`, in its order; `label` is the target's column,
    `top` counts suspects, and arguments on each side.
    """
    rank = scores[RANK]
    num_ranked = int(np.isfinite(rank).sum())
    worst = np.argsort(rank, kind="stable")[: min(top, num_ranked)]
    chosen = split.table(["sample_id", label]).take(pa.array(worst))
    shown = {RANK: rank[worst].astype(np.int64)}
    shown |= {name: values[worst] for name, values in scores.items() if name != RANK}
    for name, values in shown.items():
        chosen = chosen.append_column(name, pa.array(values))
    write_whole(out / SUSPECTS, _csv(chosen))
    arguments, sheets = _arguments(asked, split, out, label, top) if asked else ([], ())
    return Attribution(
        folder=out,
        num_samples=len(split),
        num_unlabeled=len(split) - num_ranked,
        ranked_by=ranked_by(scores, by_self=by_self),
        suspects=chosen.to_pylist(),
        arguments=arguments,
        sheets=sheets,
    )


def _csv(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return file.getvalue()


def _parts(out: Path, num_rows: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Residuals and inputs of the last layer of all training objects, as both tables have them."""
    yield from zip(
        list_parts(out / TABLE, RESIDUAL, num_rows, np.float16, _CURE),
        list_parts(out / HIDDEN_TABLE, HIDDEN, num_rows, np.float32, _CURE),
        strict=True,
    )


def _arguments(
    asked: Mapping[str, Asked], split: Split, out: Path, label: str, top: int
) -> tuple[list[dict[str, Any]], tuple[Path, ...]]:
    """The table of arguments, and a sheet per object that was asked for."""
    ids = split.table(["sample_id"]).column(0).to_pylist()
    labels = split.table([label]).column(0)
    number_of = {sample_id: number for number, sample_id in enumerate(ids)}
    query = (
        np.stack([a.residual for a in asked.values()]),
        np.stack([a.hidden for a in asked.values()]),
    )
    own = np.array([number_of.get(i, -1) for i in asked], np.int64)
    kernel, row = strongest(query, _parts(out, len(split)), own, top)
    found: list[dict[str, Any]] = []
    sheets: list[Path] = []
    for number, (sample_id, one) in enumerate(asked.items()):
        drawn = [(sample_id, "the object")]
        for side, word in enumerate(("for", "against")):
            pairs = zip(row[side, number].tolist(), kernel[side, number].tolist(), strict=True)
            known = [(n, k) for n, k in pairs if n >= 0]
            for place, (n, k) in enumerate(known, 1):
                entry = {"sample_id": sample_id, "argues": word, "place": place}
                entry |= {"training_id": ids[n], label: labels[n].as_py(), "kernel": k}
                found.append(entry)
            drawn += [(ids[n], f"argues {word}  K {k:.3g}") for n, k in known[:_MAX_DRAWN]]
        sheets.append(sheet_path(out, number))
        _draw(split.dataset, drawn, one, sheets[-1])
    names = ("sample_id", "argues", "place", "training_id", label, "kernel")
    table = pa.table({name: [entry[name] for entry in found] for name in names})
    write_whole(out / ARGUMENTS, _csv(table))
    return found, tuple(sheets)


def _draw(data: msdata.Dataset, drawn: list[tuple[str, str]], asked: Asked, path: Path) -> None:
    samples = samples_by_id(data, data.splits, [sample_id for sample_id, _ in drawn])
    captions = [
        f"{caption(sample, ())}   {note}" for sample, (_, note) in zip(samples, drawn, strict=True)
    ]
    loss = asked.scores[LOSS]
    told = f"loss {loss:.3g}" if np.isfinite(loss) else "no label: its mode stands in"
    title = f"{asked.sample_id}, {told}: training objects that argue for and against its label"
    image = draw_sheet(samples, data.schema, captions=captions, title=title)
    write_whole(path, png_bytes(image))
