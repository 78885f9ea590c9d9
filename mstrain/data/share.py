"""The samples that a training learns from: all of split "train", or a part, or with wrong labels.

Which ones is a function of the run's seed and the data alone: the same on any number of ranks, and
a smaller share is a part of a larger one. Loaders, caches and forecasts take a part as they take
any split: its name is another one, so neither states nor cached records are mixed up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from msdata.plan.random_words import uniform_permutation
from mstrain.config import TrainConfig
from mstrain.data.left_out import left_out

if TYPE_CHECKING:
    import pyarrow as pa

# Streams of random numbers of one seed; the plan's orders have 0 to 2.
_SHARE, _NOISE = 3, 4


def training_split(data: msdata.Dataset, config: TrainConfig) -> Split:
    """Split "train" as the settings ask for it, see `data.fraction` and `data.label_noise`.

    What `data.fold` and `data.without` leave out is taken from the share, which stays the same.

    Raises:
        UsageError: it has no samples, or fewer than two labels to exchange.
    """
    if "train" not in data.splits or not len(data.split("train")):
        raise UsageError(
            f"{data.path} has no samples in split 'train'; pack it with --split 0.7,0.1,0.2"
        )
    split = data.split("train")
    share, noise = config.data.fraction, config.data.label_noise
    is_left_out = left_out(split, config.data).mask
    if share == 1 and not noise and not is_left_out.any():
        return split
    order = uniform_permutation(len(split), seed=config.seed, epoch=0, stream=_SHARE)
    rows = np.sort(order[: max(1, round(share * len(split)))])
    rows = rows[~is_left_out[rows]]
    if not len(rows):
        raise UsageError(
            f"data.fraction={share:g} of {len(split):,} samples has none that is not left out; "
            "give a larger share, or a shorter --without"
        )
    if not noise:
        return part_of(split, rows)
    column = config.model.target
    split.check_columns([column])
    return part_of(split, rows, {column: _exchanged(split, rows, config)})


def _exchanged(split: Split, rows: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int64]:
    """For each row the row whose label it gets: the chosen ones hand theirs on in a circle."""
    import pyarrow.compute as pc

    labels: Any = split.table([config.model.target]).column(0)
    is_known = ~np.asarray(pc.is_null(labels, nan_is_null=True))
    drawn = uniform_permutation(len(split), seed=config.seed, epoch=0, stream=_NOISE)
    # In the order of the draw, so that labels of a smaller share of noise stay exchanged.
    known = drawn[is_known[drawn] & np.isin(drawn, rows)]
    chosen = known[: round(config.data.label_noise * len(known))]
    if len(chosen) < 2:
        raise UsageError(
            f"data.label_noise={config.data.label_noise:g} of {len(known)} labels are fewer than "
            "two, which cannot be exchanged; give a larger share, or 0"
        )
    found = rows.copy()
    found[np.searchsorted(rows, chosen)] = np.roll(chosen, 1)
    return found


def part_of(
    split: Split, rows: NDArray[np.int64], exchanged: Mapping[str, NDArray[np.int64]] | None = None
) -> Split:
    """Makes a split of some samples of another.

    Args:
        split: a split of a data set, not a part.
        rows: int64 (n,), rows of its samples, ascending.
        exchanged: columns whose values come from other rows of the split, int64 (n,) each.

    Raises:
        UsageError: rows are not ascending rows of the split, or a column does not exist.
    """
    exchanged = dict(exchanged or {})
    rows = np.ascontiguousarray(rows, np.int64)
    if not len(rows) or rows[0] < 0 or rows[-1] >= len(split) or (np.diff(rows) <= 0).any():
        raise UsageError(
            f"rows of a part must be ascending numbers from 0 to {len(split) - 1}, at least one"
        )
    split.check_columns(list(exchanged))
    return _Part(split, rows, exchanged)


class _Part(Split):
    def __init__(
        self, split: Split, rows: NDArray[np.int64], exchanged: dict[str, NDArray[np.int64]]
    ) -> None:
        self._whole, self._rows, self._exchanged = split, rows, exchanged
        words = [rows.view(np.uint8)]
        for name, others in sorted(exchanged.items()):
            words += [np.frombuffer(name.encode(), np.uint8), others.view(np.uint8)]
        index: Any = _IndexOfPart(split, rows, exchanged)
        super().__init__(split.dataset, f"{split.name}-part-{crc32c_of_parts(words):08x}", index)
        ends = np.searchsorted(rows, np.cumsum(split.shard_sizes))
        counts = np.diff(ends, prepend=0).tolist()
        self.shards = tuple(
            replace(shard, num_samples=n)
            for shard, n in zip(split.shards, counts, strict=True)
            if n
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return part_of, (self._whole, self._rows, self._exchanged)


class _IndexOfPart:
    """Reads as `IndexFile` does, whatever the split is called."""

    def __init__(
        self, split: Split, rows: NDArray[np.int64], exchanged: Mapping[str, NDArray[np.int64]]
    ) -> None:
        self._split, self._rows, self._exchanged = split, rows, exchanged
        self.column_names: Sequence[str] = split.dataset.columns
        self.path: Path = split.dataset.path
        self.check_columns, self.column_type = split.check_columns, split.column_type

    def _rows_of(self, column: str) -> NDArray[np.int64]:
        return self._exchanged.get(column, self._rows)

    def read(self, _: str, columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        whole = self._split.table(list(columns))
        return pa.table({n: whole.column(n).take(self._rows_of(n)) for n in columns})

    def read_numbers(self, _: str, column: str, dtype: Any) -> NDArray[Any]:
        found: NDArray[Any] = self._split.numbers(column, dtype)[self._rows_of(column)]
        return found

    def column_parts(self, _: str, column: str) -> Iterator[pa.Array]:
        yield from self.read("", [column]).column(0).chunks

    def read_value(self, _: str, row: int, column: str) -> Any:
        return self._split.table([column]).column(0)[int(self._rows_of(column)[row])].as_py()

    def read_row(self, _: str, row: int) -> dict[str, Any]:
        index = self._split._index
        found = index.read_row(self._split.name, int(self._rows[row]))
        return found | {name: self.read_value("", row, name) for name in self._exchanged}
