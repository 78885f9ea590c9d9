"""Compiles the catalog: every survey's rows that pass, without repeats and close pairs.

An object counts for one reason only, the first it meets: its survey's own cuts, the common cuts, a
repeated id within its survey (the first row wins), and last a better object within the separation.
Better is: of a survey that stands before it in the order; of the same survey, an earlier row.

Ids are numbers of seven digits that stay with an object, which its survey and its id there name.
Objects of an earlier catalog keep their numbers; the others are numbered on from the largest,
sorted by survey and id, so the order of surveys and rows changes no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from msdata.catalog.build.disagreements import DISPUTED, Disagreements, find_disagreements
from msdata.catalog.build.dust import reddening
from msdata.catalog.build.select import find_columns, repeated_ids, select_rows
from msdata.catalog.build.spec import CatalogSpec, SurveyTask
from msdata.catalog.positions import position_id
from msdata.catalog.sky import close_pairs
from msdata.catalog.table import open_table, read_pieces
from msdata.catalog.values import EBV_RANGE
from msdata.core.files import storage_error
from msdata.errors import DataError, UsageError, naming

REPEATED = "repeated id"
CLOSE_TO_OWN = "close to another of its survey"
CLOSE_TO_OTHER = "close to one of a better survey"
_ID_WIDTH = 7
# Columns of all rows that pass, which no survey's table has.
_IS_REPEATED, _ROW = "\0repeated", "\0row"
# Between a survey's name and an id; no table has it in a text.
_BETWEEN = "\x1f"


@dataclass(frozen=True, kw_only=True)
class SurveyCounts:
    """What became of a survey's rows.

    Attributes:
        key: what the spec calls it.
        name: what the catalog calls it.
        num_available: rows of its tables.
        num_dropped: rows by reason, in the order in which the reasons apply.
        num_accepted: rows in the catalog.
        left_out: reasons of optional cuts for which a table lacks the column.
    """

    key: str
    name: str
    num_available: int
    num_dropped: dict[str, int]
    num_accepted: int
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_available != self.num_accepted + sum(self.num_dropped.values()):
            raise DataError(f"the counts of {self.name} do not add up: {self}")


@dataclass(frozen=True, kw_only=True)
class BuiltCatalog:
    """The catalog.

    Attributes:
        table: `sample_id`, `ra`, `dec`, `redshift`, `survey`, `object_id` (its id in the survey)
            `is_disputed` and a float32 column `ebv_x` for each map x; sorted by `sample_id`.
        disputed: pairs of rows that contradict each other, and their rates.
        disagreements: these pairs as a table.
        counts: one per survey, the better one first.
        notes: cuts that were left out, ids and E(B-V) that are absent.
    """

    table: pa.Table
    disputed: Disagreements
    disagreements: pa.Table
    counts: tuple[SurveyCounts, ...]
    notes: tuple[str, ...] = ()


def build_catalog(
    spec: CatalogSpec, say: Callable[[str], None] = lambda line: None
) -> BuiltCatalog:
    """Reads the surveys and compiles the catalog.

    Args:
        spec: what is asked for.
        say: told what has been done, a line at a time.

    Raises:
        UsageError: a table or column is not there.
        DataError: a table is broken, or no object is left.
        StorageError: the file system refused.
    """
    # A typo in the last name must not show after an hour.
    notes: list[str] = []
    left_out = [_look_at(task, notes) for task in spec.surveys]
    read = [_read_survey(task, spec, say) for task in spec.surveys]
    tables, available, dropped = zip(*read, strict=True)
    every = pa.concat_tables(tables)
    rank = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
    if every.num_rows == 0:
        raise DataError("no row of any survey passes the cuts; look at the counts and the recipes")
    names = [task.recipe.name for task in spec.surveys]
    disputed = find_disagreements(
        every, rank, names, within_arcsec=spec.disagreement_arcsec, above=spec.disagreement_above
    )
    is_first = ~every[_IS_REPEATED].to_numpy()
    every = every.append_column(DISPUTED, pa.array(disputed.is_disputed))
    every = every.append_column(_ROW, pa.array(np.arange(every.num_rows)))
    survey_of_every = pa.array(names).take(pa.array(rank))
    objects, rank = every.filter(pa.array(is_first)), rank[is_first]
    is_kept, near = _separate(objects, rank, len(tables), spec.separation_arcsec)
    say(f"{objects.num_rows - int(is_kept.sum()):,} lie within {spec.separation_arcsec:g} arcsec")
    kept = objects.filter(pa.array(is_kept))
    counts = tuple(
        SurveyCounts(
            key=task.key,
            name=task.recipe.name,
            num_available=available[k],
            num_dropped={**dropped[k], **near[k]},
            num_accepted=int(np.count_nonzero(rank[is_kept] == k)),
            left_out=left_out[k],
        )
        for k, task in enumerate(spec.surveys)
    )
    table = _finish(kept, pa.array(names).take(pa.array(rank[is_kept])), spec, notes)
    place = pc.index_in(pa.array(np.arange(every.num_rows)), value_set=table[_ROW])
    return BuiltCatalog(
        table=table.drop_columns(_ROW),
        disputed=disputed,
        disagreements=disputed.table(every, survey_of_every, table["sample_id"].take(place)),
        counts=counts,
        notes=tuple(notes),
    )


def _look_at(task: SurveyTask, notes: list[str]) -> tuple[str, ...]:
    """Looks for a survey's columns in its tables; reasons of the cuts that one cannot have."""
    left_out = []
    for path in task.files:
        table = open_table(path, task.recipe.hdu)
        columns = find_columns(task.recipe, table.names, str(path))
        for cut, name in zip(task.recipe.cuts, columns.cuts, strict=True):
            if name is None:
                notes.append(f"{path.name} has no column {cut.column[0]}: {cut.reason!r} not cut")
                left_out.append(cut.reason)
    return tuple(left_out)


def _read_survey(
    task: SurveyTask, spec: CatalogSpec, say: Callable[[str], None]
) -> tuple[pa.Table, int, Counter[str]]:
    """Rows that pass, repeated ids marked, in the order of files and rows; rows read; reasons."""
    further = [d.value for d in spec.dust if d.kind == "column"]
    tables: list[pa.Table] = []
    counts: Counter[str] = Counter()
    num_rows = 0
    for path in task.files:
        table = open_table(path, task.recipe.hdu)
        columns = find_columns(task.recipe, table.names, str(path), further)
        for piece in read_pieces(table, columns.wanted):
            num_rows += piece.num_rows
            with naming(f"table {path}"):
                accepted, reasons = select_rows(piece, task.recipe, columns, spec)
            tables.append(accepted)
            counts.update(reasons)
    if not tables:
        raise DataError(f"the tables of {task.recipe.name} have no rows; check their files")
    accepted = pa.concat_tables(tables)
    is_repeated = repeated_ids(accepted["object_id"])
    passing = int((~is_repeated).sum())
    counts[REPEATED] += len(is_repeated) - passing
    say(f"{task.recipe.name}: {num_rows:,} rows, {passing:,} pass the cuts")
    return accepted.append_column(_IS_REPEATED, pa.array(is_repeated)), num_rows, counts


def _separate(
    objects: pa.Table, rank: Any, num_surveys: int, separation_arcsec: float
) -> tuple[Any, list[dict[str, int]]]:
    """Which objects to keep, and the dropped ones of each survey by reason."""
    ra, dec = objects["ra"].to_numpy(), objects["dec"].to_numpy()
    pairs = close_pairs(ra, dec, separation_arcsec)
    is_kept = keep_best(len(ra), pairs)
    # Of a dropped object's better neighbors that are kept, the first tells the reason.
    causes = pairs[is_kept[pairs[:, 0]] & ~is_kept[pairs[:, 1]]]
    best = np.full(len(ra), len(ra), np.int64)
    np.minimum.at(best, causes[:, 1], causes[:, 0])
    dropped = np.flatnonzero(~is_kept)
    is_own = rank[best[dropped]] == rank[dropped]
    near = [
        {
            CLOSE_TO_OWN: int(np.count_nonzero(is_own & (rank[dropped] == k))),
            CLOSE_TO_OTHER: int(np.count_nonzero(~is_own & (rank[dropped] == k))),
        }
        for k in range(num_surveys)
    ]
    return is_kept, near


def keep_best(num: int, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which positions to keep, so that no pair is left.

    From the best to the worst, each is kept that is not close to one already kept. So a position is
    dropped if, and only if, a better one that is kept is close to it. Of a chain of three, both
    ends are kept where the middle one is not the best.

    Args:
        num: positions; the smaller its number, the better one is.
        pairs: int64 (pairs, 2), the smaller number first.

    Returns:
        bool (num,).
    """
    is_kept = np.ones(num, bool)
    is_open = np.zeros(num, bool)
    is_open[pairs] = True
    left = pairs
    while len(left):
        # Whatever is the worse one of no pair that is left is kept; what is close to it is not.
        is_worse = np.zeros(num, bool)
        is_worse[left[:, 1]] = True
        is_best = is_open & ~is_worse
        dropped = left[is_best[left[:, 0]], 1]
        is_kept[dropped] = False
        is_open &= ~is_best
        is_open[dropped] = False
        left = left[is_open[left[:, 0]] & is_open[left[:, 1]]]
    return is_kept


def _finish(kept: pa.Table, surveys: pa.Array, spec: CatalogSpec, notes: list[str]) -> pa.Table:
    """Ids and reddening; sorted by id."""
    object_ids = _named_objects(kept)
    columns: dict[str, Any] = {
        "sample_id": _assign_ids(surveys, object_ids, spec.previous),
        **{name: kept[name] for name in ("ra", "dec", "redshift")},
        "survey": surveys,
        "object_id": object_ids,
        **{name: kept[name] for name in (DISPUTED, _ROW)},
    }
    ra, dec = kept["ra"].to_numpy(), kept["dec"].to_numpy()
    num_nameless = kept["object_id"].null_count
    if num_nameless:
        notes.append(f"objects without an id in their survey, named by position: {num_nameless:,}")
    further = iter(name for name in kept.column_names if name.startswith("further_"))
    for dust in spec.dust:
        if dust.kind == "column":
            values = kept[next(further)].to_numpy().astype(np.float32)
        else:
            values = reddening(dust, ra, dec)
        columns[f"ebv_{dust.name}"] = pa.array(_plausible(dust.name, values, notes))
    return pa.table(columns).sort_by("sample_id")


def _plausible(name: str, values: Any, notes: list[str]) -> Any:
    """E(B-V) with NaN for what cannot be one, such as -999."""
    low, high = EBV_RANGE
    with np.errstate(invalid="ignore"):
        is_outside = (values < low) | (values > high)
    num_outside = int(np.count_nonzero(is_outside))
    if num_outside:
        notes.append(f"ebv_{name} outside {low:g} to {high:g}, which is absent: {num_outside:,}")
    return np.where(is_outside, np.float32(np.nan), values)


def _named_objects(kept: pa.Table) -> pa.Array:
    """Ids in the surveys; an object without one is named by its position."""
    ids = kept["object_id"].combine_chunks()
    missing = np.flatnonzero(np.asarray(ids.is_null()))
    if not len(missing):
        return ids
    rows = kept.take(pa.array(missing))
    names = [
        position_id(ra, dec)
        for ra, dec in zip(rows["ra"].to_pylist(), rows["dec"].to_pylist(), strict=True)
    ]
    mask = np.zeros(len(ids), bool)
    mask[missing] = True
    return pc.replace_with_mask(ids, pa.array(mask), pa.array(names))


def _assign_ids(surveys: pa.Array, object_ids: pa.Array, previous: Path | None) -> pa.Array:
    """Text of each object's number, at least seven digits; survey and id name one object."""
    keys = pc.binary_join_element_wise(surveys, object_ids, _BETWEEN)
    numbers = np.full(len(keys), -1, np.int64)
    next_number = 0
    if previous is not None:
        old_keys, old_numbers = _read_previous(previous)
        found = pc.fill_null(pc.index_in(keys, value_set=old_keys), -1).to_numpy()
        is_known = found >= 0
        numbers[is_known] = old_numbers[found[is_known]]
        next_number = int(old_numbers.max(initial=-1)) + 1
    order = pc.sort_indices(keys).to_numpy()
    new = order[numbers[order] < 0]
    numbers[new] = next_number + np.arange(len(new))
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), _ID_WIDTH, "0")


def _read_previous(path: Path) -> tuple[pa.Array, Any]:
    try:
        table = pq.read_table(path, columns=["sample_id", "survey", "object_id"])
        numbers = table["sample_id"].cast(pa.int64()).to_numpy()
    except FileNotFoundError:
        raise UsageError(f"the previous catalog {path} is not a file; check the path") from None
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"the previous catalog {path} was not written by msdata, or is broken: {error}"
        ) from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    keys = pc.binary_join_element_wise(table["survey"], table["object_id"], _BETWEEN)
    return keys.combine_chunks(), numbers
