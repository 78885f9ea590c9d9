"""Labels of a data set: which there are, what kind they are, and what settings leave to them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

import msdata
from msdata.dataset.dataset import Split
from msdata.dataset.index import fixed_columns
from msdata.errors import UsageError
from mstrain.config import TrainConfig
from mstrain.network_config import CLASSES, REDSHIFT, SCALAR, ModelConfig

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_CLASSES = 1000
# Integers of more values than this are counts rather than classes, unless the settings say so.
_MAX_GUESSED_CLASSES = 100
# Of the range over that of the central half: farther ends are marks of unknown values, or need bins
# that only the user can choose.
_MAX_STRETCH = 50.0
# Columns that place or describe a sample, and are rarely what one wants to learn.
_POSITIONS = ("ra", "dec", "ebv", "ebv_csfd", "ebv_planck")


def label_columns(data: msdata.Dataset) -> list[str]:
    """Columns of the index that may be learned: not those of every index, nor positions."""
    fixed = {*fixed_columns(data.schema, data.manifest.codings), *_POSITIONS}
    return [name for name in data.columns if name not in fixed]


def resolve(config: TrainConfig, data: msdata.Dataset) -> TrainConfig:
    """The configuration with what it leaves to the data: kind of the target, range or classes.

    Args:
        config: settings of the run; those of a redshift come back as they are.
        data: with split "train".

    Raises:
        UsageError: the column is missing, or makes no target of the kind that was asked for.
    """
    model = config.model
    if model.kind_of_target == REDSHIFT:
        return config
    column, fixed = model.target, fixed_columns(data.schema, data.manifest.codings)
    if column not in data.columns or column in fixed:
        raise UsageError(
            f"model.target must be a label of {data.path}, got {column!r}; it has "
            f"{', '.join(label_columns(data)) or 'none'}"
        )
    split = data.split("train")
    kind = model.kind_of_target or guess_kind(split, model.target)
    if kind == SCALAR:
        low, high = _range(split, model)
        found = replace(model, target_kind=kind, target_min=low, target_max=high)
        return replace(config, model=found)
    if config.loss.label_width:
        raise UsageError(
            f"loss.label_width must be 0 for classes, got {config.loss.label_width:g}: it spreads "
            "labels over neighboring bins, and classes have none"
        )
    names = _classes(split, model)
    found = replace(model, target_kind=kind, classes=names, num_bins=len(names))
    loss = replace(config.loss, weight_bins=len(names))
    return replace(config, model=found, loss=loss)


def guess_kind(split: Split, column: str) -> str:
    """The kind of a label by its type: texts, truth values and few integers are classes.

    Raises:
        UsageError: the column holds neither numbers nor text.
    """
    import pyarrow as pa

    kind = split.column_type(column)
    if pa.types.is_floating(kind):
        return SCALAR
    if pa.types.is_integer(kind):
        num_values = len(count_classes(split, column))
        return CLASSES if num_values <= _MAX_GUESSED_CLASSES else SCALAR
    if not (is_text(kind) or pa.types.is_boolean(kind)):
        raise UsageError(f"model.target must be a column of numbers or text, got {column} ({kind})")
    return CLASSES


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def count_classes(split: Split, column: str) -> dict[str, int]:
    """Samples of each value of a column, by its name, in the order of the values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [class_names(part) for part in split.column_parts(column)]
    found = pc.value_counts(pa.chunked_array(parts, pa.string()))
    counts = {str(e["values"]): int(e["counts"]) for e in found.to_pylist() if e["values"]}
    is_number = not pa.types.is_string(split.column_type(column)) and all(
        name.lstrip("-").isdigit() for name in counts
    )
    return dict(sorted(counts.items(), key=lambda item: int(item[0]) if is_number else item[0]))


def class_names(values: pa.Array) -> pa.Array:
    """Names of classes, strings: "3" for 3 and 3.0, "true"; null where a value is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(values.type):
        is_whole = pc.and_(pc.is_finite(values), pc.equal(values, pc.floor(values)))
        values = pc.if_else(is_whole, values, None).cast(pa.int64())
    names = values.cast(pa.string())
    return pc.if_else(pc.equal(names, ""), None, names)


def _classes(split: Split, model: ModelConfig) -> tuple[str, ...]:
    """Names of the classes: those asked for, or all of the training split."""
    import pyarrow as pa

    place = f"{model.target} of split 'train' of {split.dataset.path}"
    kind = split.column_type(model.target)
    if pa.types.is_floating(kind):
        finite = split.numbers(model.target)
        finite = finite[np.isfinite(finite)]
        if (finite != np.floor(finite)).any():
            raise UsageError(
                f"classes must be texts or integers, got fractions in {place}, such as "
                f"{finite[finite != np.floor(finite)][0]:g}; give model.target_kind=scalar"
            )
    counts = count_classes(split, model.target)
    if missing := [name for name in model.classes if name not in counts]:
        raise UsageError(
            f"model.classes must have samples in split 'train', got {', '.join(missing)} without; "
            f"it has {', '.join(list(counts)[:20])}"
        )
    names = model.classes or tuple(counts)
    if not 2 <= len(names) <= _MAX_CLASSES:
        raise UsageError(
            f"classes must be 2 to {_MAX_CLASSES}, got {len(names)} in {place}"
            + ("; give model.target_kind=scalar, or another column" if len(names) > 2 else "")
        )
    return names


def _range(split: Split, model: ModelConfig) -> tuple[float, float]:
    """Ends of the bins: as asked for, else those of the training labels, rounded outwards."""
    place = f"{model.target} of split 'train' of {split.dataset.path}"
    values = split.numbers(model.target)
    values = values[np.isfinite(values)]
    if not len(values):
        raise UsageError(f"cannot learn {place}: no sample has a number there")
    ends = float(values.min()), float(values.max())
    low, high = np.quantile(values, (0.25, 0.75))
    asked = model.target_min, model.target_max
    if None in asked:
        if ends[0] == ends[1]:
            raise UsageError(f"cannot learn {place}: all values are {ends[0]:g}")
        middle = max(high - low, 1e-9 * (ends[1] - ends[0]))
        if ends[1] - ends[0] > _MAX_STRETCH * middle:
            raise UsageError(
                f"{place} lies in [{ends[0]:g}, {ends[1]:g}], and half of it in [{low:g}, "
                f"{high:g}]: marks of unknown values, or bins too wide; give model.target_min and "
                "model.target_max (what lies outside counts as unknown)"
            )
    step = 10.0 ** (math.floor(math.log10(max(ends[1] - ends[0], 1e-300))) - 2)
    found_low = math.floor(ends[0] / step) * step if asked[0] is None else asked[0]
    found_high = math.ceil(ends[1] / step) * step if asked[1] is None else asked[1]
    # Multiples of the step keep 0.3 from becoming 0.30000000000000004.
    found_low, found_high = float(f"{found_low:.12g}"), float(f"{found_high:.12g}")
    if not found_low < found_high:
        raise UsageError(
            f"model.target_min must be < model.target_max, got {found_low:g} and {found_high:g} "
            f"for {place}"
        )
    return found_low, found_high
