"""Ids of the catalogue's objects: numbers of seven digits that stay with an object.

An object is known by its survey and its id there. Objects that an earlier catalogue has keep its
number; the others are numbered on from the largest, sorted by survey and id. So numbers depend
neither on the order of the surveys' rows nor on that of the surveys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msdata.core.files import storage_error
from msdata.errors import DataError, UsageError

_WIDTH = 7
# Between a survey's name and an id; no table has it in a text.
_BETWEEN = "\x1f"


def assign_ids(surveys: pa.Array, object_ids: pa.Array, previous: Path | None) -> pa.Array:
    """Text of each object's number, at least seven digits.

    Args:
        surveys: name of each object's survey.
        object_ids: its id there; survey and id together name one object.
        previous: Parquet file of an earlier catalogue, None for none.

    Raises:
        UsageError: there is no such catalogue.
        DataError: it is broken.
    """
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
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), _WIDTH, "0")


def _read_previous(path: Path) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    columns = ["sample_id", "survey", "object_id"]
    try:
        table = pq.read_table(path, columns=columns)
        numbers = table["sample_id"].cast(pa.int64()).to_numpy()
    except FileNotFoundError:
        raise UsageError(f"the previous catalogue {path} is no file; check the path") from None
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"the previous catalogue {path} is none of msdata's, or broken: {error}"
        ) from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    keys = pc.binary_join_element_wise(table["survey"], table["object_id"], _BETWEEN)
    return keys.combine_chunks(), numbers
