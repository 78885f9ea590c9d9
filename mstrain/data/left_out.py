"""Samples of split "train" that a training must not see: a fold, and those of a list.

Only names them: `mstrain.data.share` makes the split that is trained on. Validation and test are
never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msdata.catalog.table import open_table, read_pieces
from msdata.catalog.values import id_text
from msdata.dataset.dataset import Dataset, Split
from msdata.errors import DataError, UsageError
from mstrain.config import DataConfig, parse_fold

_ID = "sample_id"


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftOut:
    """Samples of split "train" that are not trained on.

    Attributes:
        mask: bool (samples,), read-only.
        notes: which they are, for people.
        record: what config.json keeps of it; empty where nothing is left out.
    """

    mask: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


def left_out(split: Split, config: DataConfig) -> LeftOut:
    """The samples of the whole split "train" that `fold` and `without` leave out.

    Raises:
        UsageError: the list cannot be read, names no sample of the split, or nothing is left.
        DataError: the list is damaged.
        StorageError: the file system refused.
    """
    return _left_out(split, config.fold, config.without)


@lru_cache(maxsize=8)
def _left_out(split: Split, fold: str | None, without: str | None) -> LeftOut:
    mask = np.zeros(len(split), bool)
    notes: list[str] = []
    record: dict[str, Any] = {}
    if fold is None and without is None:
        return LeftOut(mask=mask)
    ids = split.table([_ID]).column(0)
    if fold is not None:
        part, count = parse_fold(fold)
        mask |= fold_of(ids, count) == part
        record["fold"] = {"fold": fold, "num_left_out": int(mask.sum())}
        notes.append(f"fold {fold}: {int(mask.sum()):,} samples left out")
    if without is not None:
        is_listed, found = _listed(split.dataset, ids, Path(without))
        mask |= is_listed
        record["without"] = found
        notes.append(
            f"{without}: {found['num_left_out']:,} samples left out; of its {found['num_listed']:,}"
            f" ids {found['num_in_other_splits']:,} are in other splits, which stay as they are, "
            f"and {found['num_unknown']:,} are not in the data"
            + (f", such as {found['unknown']!r}" if found["num_unknown"] else "")
        )
    if mask.all():
        raise UsageError(f"nothing is left of split {split.name!r} to train on: {'; '.join(notes)}")
    mask.flags.writeable = False
    return LeftOut(mask=mask, notes=tuple(notes), record=record)


def check_left_out(run: Path, saved: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuses to resume a run whose training left out other samples of a list.

    `saved` is its config.json, `record` that of `LeftOut` now.

    Raises:
        UsageError: the list is another one, was left out, or is new.
    """
    before, now = (found.get("left_out", found).get("without") for found in (saved, record))
    if (before or {}).get("sha256") != (now or {}).get("sha256"):
        told = [
            f"all but the {w['num_listed']:,} samples of {w['path']}" if w else "all samples"
            for w in (before, now)
        ]
        raise UsageError(
            f"{run} was trained on {told[0]}, now it is {told[1]}: it cannot resume; give the "
            "former --without, or another --out"
        )


def fold_of(ids: pa.ChunkedArray | list[str], count: int) -> NDArray[np.int64]:
    """The fold of each sample, a hash of its id: the same in any data set and order.

    Args:
        ids: text (samples,).
        count: number of folds.

    Returns:
        int64 (samples,), 0 to count - 1.
    """
    texts = ids if isinstance(ids, list) else ids.to_pylist()
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    # The remainder of 64 bits favors no fold by more than 1e-17.
    return (np.frombuffer(digests, "<u8") % np.uint64(count)).astype(np.int64)


def _listed(
    data: Dataset, ids: pa.ChunkedArray, path: Path
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Which samples a list names, and what is known of it."""
    listed = _read_ids(path)
    is_listed = pc.is_in(ids, value_set=listed).to_numpy()
    if not is_listed.any():
        raise UsageError(
            f"{path} must name samples of split 'train' of {data.path}, got {len(listed):,} ids, "
            f"such as {listed[0].as_py()!r}, and none of them is; an id of the data is "
            f"{ids[0].as_py()!r}"
        )
    others = [data.split(n).table([_ID]).column(0) for n in data.splits if n != "train"]
    in_others = pa.chunked_array([part for column in others for part in column.chunks], pa.string())
    is_known = pc.or_(
        pc.is_in(listed, value_set=ids.cast(pa.string())), pc.is_in(listed, value_set=in_others)
    ).to_numpy(zero_copy_only=False)
    unknown = np.flatnonzero(~is_known)
    num_left_out = int(is_listed.sum())
    return is_listed, {
        "path": str(path.absolute()),
        "sha256": sha256("\n".join(sorted(listed.to_pylist())).encode()).hexdigest(),
        "num_listed": len(listed),
        "num_left_out": num_left_out,
        "num_in_other_splits": len(listed) - num_left_out - len(unknown),
        "num_unknown": len(unknown),
        "unknown": listed[int(unknown[0])].as_py() if len(unknown) else None,
    }


def _read_ids(path: Path) -> pa.Array:
    """The different ids of a list, in its order."""
    table = open_table(path)
    if _ID not in table.names:
        raise UsageError(
            f"{path} must have a column {_ID!r}, got {', '.join(table.names[:20])}; give the table "
            "of suspects that 'mstrain attribute' wrote, or a CSV file with that head"
        )
    parts = [id_text(_ID, piece[_ID]).drop_null() for piece in read_pieces(table, [_ID])]
    listed = pc.unique(pa.chunked_array([p.cast(pa.string()) for p in parts], pa.string()))
    if not len(listed):
        raise DataError(f"{path} must have at least one id, got none")
    return listed
