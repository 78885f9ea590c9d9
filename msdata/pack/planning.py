"""The plan of a pack, and the tasks that worker processes and ranks are given from it.

Planning lists the objects, infers their schema from the first few, joins labels and cuts shards.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.core.files import storage_error
from msdata.core.trusted_names import check_source_paths
from msdata.dataset import hdf5, tar
from msdata.errors import DataError, SampleError, UsageError
from msdata.pack.candidates import plan_candidates
from msdata.pack.columns import check_array_names, scalar_names
from msdata.pack.encode import codings_of, encode_sample
from msdata.pack.prepare import Preparation, is_number, prepare
from msdata.pack.read_ahead import read_in_order, read_sample
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardTask
from msdata.pack.state import PackPlan, PackState
from msdata.schema import MANTIS_SHRIMP, Sample, Schema, Survey
from msdata.sources.detect import detect_source
from msdata.sources.source import Source

if TYPE_CHECKING:
    import pyarrow as pa

# Enough to outvote a few broken objects, few enough to read at once.
NUM_LOOKED_AT = 16


def infer_schema(
    source: Source, locations: Sequence[tuple[str, int]], *, merges: bool = False
) -> tuple[Schema, tuple[str, ...]]:
    """Infers the schema that most of the first objects share.

    Args:
        source: the source that holds the objects.
        locations: (path, row) of the objects to read.
        merges: take the arrays of all of them, since arrays that an object lacks are filled.

    Returns:
        `MANTIS_SHRIMP` (with the objects' own numbers as scalars) if the objects hold its three
        arrays and no others; else an inferred one. And notes on entries that shards leave out.

    Raises:
        DataError: none of the objects is usable.
    """
    votes: Counter[Schema] = Counter()
    merged: Sample = {}
    left_out: dict[Schema, list[str]] = {}
    reason = ""

    def look(number: int) -> tuple[Schema, list[str], Sample]:
        sample = read_sample(source, *locations[number])
        try:
            schema = schema_of(sample)
        except UsageError as error:
            raise SampleError(str(error)) from error
        known = {name: sample[name] for name in (*schema.names, *schema.scalars)}
        return schema, [n for n in sample if n not in known], known if merges else {}

    for number, found in read_in_order(len(locations), look):
        if isinstance(found, SampleError):
            reason = reason or f"{locations[number][0]}: {found}"
        else:
            votes[found[0]] += 1
            left_out.setdefault(found[0], found[1])
            merged.update(found[2])
    if not votes:
        raise DataError(
            f"none of the first {len(locations)} objects of {source.root} is usable; {reason}"
        )
    schema = votes.most_common(1)[0][0]
    if merges:
        left_out[schema] = [*dict.fromkeys(name for names in left_out.values() for name in names)]
    ignored, schema = left_out[schema], schema_of(merged) if merges else schema
    if not ignored:
        return schema, ()
    names = ", ".join([*map(repr, ignored[:5]), *(["..."] if ignored[5:] else [])])
    return schema, (
        f"objects hold {names}, which shards leave out: neither an array nor a number; give text "
        "labels and flags as columns of the catalog",
    )


def schema_of(sample: Mapping[str, Any]) -> Schema:
    """The schema of one object.

    Args:
        sample: its dict.

    Raises:
        SampleError: it holds no numeric array, or an array that is not numeric.
    """
    arrays = {n: v for n, v in sample.items() if isinstance(v, np.ndarray) and v.ndim}
    scalars = tuple(n for n, v in sample.items() if n not in arrays and is_number(v))
    if not arrays:
        raise SampleError("its dict holds no arrays")
    known = {a.name: a for a in MANTIS_SHRIMP.arrays}
    if arrays.keys() == known.keys() and all(arrays[n].shape == known[n].shape for n in known):
        return replace(MANTIS_SHRIMP, scalars=scalars)
    surveys = tuple(_survey_of(name, array, known.get(name)) for name, array in arrays.items())
    return Schema(name="inferred", arrays=surveys, scalars=scalars)


def _survey_of(name: str, array: np.ndarray[Any, Any], known: Survey | None) -> Survey:
    if known is not None and known.shape == array.shape:
        return known
    if array.dtype.kind not in "biufc":
        raise SampleError(f"array {name!r} has dtype {array.dtype}, not numbers")
    return Survey(name=name, shape=array.shape, dtype=array.dtype.newbyteorder("<").str)


def with_pixel_scales(schema: Schema, pixel_scales_arcsec: Mapping[str, float]) -> Schema:
    """Replaces pixel scales of a schema.

    Raises:
        UsageError: the schema has no array of that name.
    """
    for name in pixel_scales_arcsec:
        if name not in schema.names:
            raise UsageError(
                f"--pixel-scale must name one of {', '.join(schema.names)}, got {name}"
            )
    arrays = (
        replace(a, pixel_scale_arcsec=pixel_scales_arcsec.get(a.name, a.pixel_scale_arcsec))
        for a in schema.arrays
    )
    return replace(schema, arrays=tuple(arrays))


def described(schema: Schema, settings: PackSettings) -> Schema:
    """Gives arrays the bands, units and zero-points that the settings name.

    Raises:
        UsageError: the schema has no such array, or an array has another number of bands.
    """
    options = {"--bands": settings.bands, "--unit": settings.units}
    for option, values in {**options, "--zero-point": settings.zero_points_ab}.items():
        for name in values or {}:
            if name not in schema.names:
                raise UsageError(f"{option} must name one of {', '.join(schema.names)}, got {name}")
    return replace(schema, arrays=tuple(_described(a, settings) for a in schema.arrays))


def _described(survey: Survey, settings: PackSettings) -> Survey:
    bands = (settings.bands or {}).get(survey.name, survey.bands)
    unit = (settings.units or {}).get(survey.name, survey.unit)
    survey = (
        replace(survey, bands=bands, unit=unit, zero_points_ab=None)
        if (bands != survey.bands)
        else replace(survey, unit=unit)
    )
    points = (settings.zero_points_ab or {}).get(survey.name)
    if points is None:
        return survey
    if len(points) == 1:
        points *= survey.num_bands
    return replace(survey, zero_points_ab=points)


# Bytes of a JSON member, for sizing shards; a catalog of twenty columns stays below.
_JSON_NBYTES = 512
# Shards of coded samples are cut before these are encoded: few become larger than asked for.
_SIZE_MARGIN = 1.1
# A worker starts in the time in which another one packs about this much, and a sample costs as much
# as so many bytes whatever its size.
_WORKER_NBYTES = 128 << 20
_SAMPLE_WORK_NBYTES = 64 << 10
SUFFIXES = {"tar": tar.SUFFIX, "hdf5": hdf5.SUFFIX}


def make_plan(state: PackState, settings: PackSettings) -> PackPlan:
    """Returns the plan that the pack was started with, or makes a new one.

    Raises:
        UsageError: the pack was started with other settings, or they do not fit the data.
        DataError: the source holds nothing usable.
    """
    if state.has_plan():
        plan = state.load_plan(settings)
        state.remove_leftovers(plan)
        return plan
    try:
        return _make_plan(state, settings)
    except BaseException:
        # No work was started: corrected options can use the same folder, without --resume.
        state.forget_unplanned()
        raise


def _make_plan(state: PackState, settings: PackSettings) -> PackPlan:
    source = detect_source(settings.source, settings.fits, settings.arrays)
    objects = source.scan()
    schema, notes = source.schema, tuple[str, ...]()
    if schema is None:
        locations = _first_locations(objects)
        schema, notes = infer_schema(source, locations, merges=settings.fill is not None)
    notes += tuple(json.loads((objects.schema.metadata or {}).get(b"notes", b"[]")))
    if settings.arrays is not None:
        settings.arrays.check_names(schema.names)
    schema = described(with_pixel_scales(schema, settings.pixel_scales_arcsec or {}), settings)
    check_array_names(schema)
    _check_nan_fraction(schema, settings, inpainted(schema, settings))

    def measure(kept: pa.Table, label_columns: Sequence[str]) -> int:
        return _record_nbytes(source, kept, label_columns, schema, settings)

    candidates = plan_candidates(objects, schema, settings, measure, SUFFIXES[settings.container])
    if settings.fits is not None and not {"ra", "dec"} <= set(candidates.label_columns):
        found = "no catalog was given"
        if settings.catalog is not None:
            found = f"catalog {settings.catalog} lacks the columns ra and dec"
        raise UsageError(
            f"FITS files are cut around the objects' positions, but {found}; give one that has "
            "them with --catalog"
        )
    for split in {s.split for s in candidates.slices}:
        _make_folder(state.out / split)
    candidates = replace(candidates, notes=(*candidates.notes, *notes))
    return state.save_plan(settings, schema, candidates)


def inpainted(schema: Schema, settings: PackSettings) -> tuple[str, ...]:
    """Names of the arrays to inpaint.

    Raises:
        UsageError: the schema has no array of that name, or it is not a stack of images.
    """
    if settings.inpaint is None:
        return tuple(a.name for a in schema.arrays if a.may_have_nan)
    for name in settings.inpaint:
        if name not in schema.names:
            raise UsageError(f"--inpaint must name one of {', '.join(schema.names)}, got {name}")
        survey = schema[name]
        if len(survey.shape) != 3 or survey.dtype != "<f4" or survey.has_bands_last:
            raise UsageError(
                f"--inpaint {name}: the array must be float32 (bands, height, width), got "
                f"{survey.dtype} {survey.shape}"
            )
    return settings.inpaint


def _check_nan_fraction(schema: Schema, settings: PackSettings, filled: tuple[str, ...]) -> None:
    """Refuses a fraction that applies to no array; 1, which allows all NaN, is always valid."""
    is_default = settings.max_nan_fraction in (PackSettings.max_nan_fraction, 1)
    if is_default or filled or any(array.bands for array in schema.arrays):
        return
    raise UsageError(
        f"--max-nan-fraction {settings.max_nan_fraction:g} applies to no array: none has named "
        "bands; name the arrays to check and fill with --inpaint"
    )


def _first_locations(objects: pa.Table) -> list[tuple[str, int]]:
    head = objects.slice(0, NUM_LOOKED_AT)
    return list(zip(head["path"].to_pylist(), head["row"].to_pylist(), strict=True))


def _record_nbytes(
    source: Source,
    objects: pa.Table,
    label_columns: Sequence[str],
    schema: Schema,
    settings: PackSettings,
) -> int:
    """Bytes of a sample in a shard, headers included; of a coded one, those of the first few."""
    stored = None
    if codings := codings_of(schema, settings):
        preparation, found = preparation_of(schema, settings), []
        labels = label_rows(objects.slice(0, NUM_LOOKED_AT).select(list(label_columns)))
        for (path, row), label in zip(_first_locations(objects), labels, strict=True):
            # The first few objects may be unusable.
            with suppress(SampleError):
                prepared = prepare(read_sample(source, path, row, label), schema, preparation)
                arrays = encode_sample(prepared.arrays, codings, {}).arrays
                found.append(sum(array.nbytes for array in arrays))
        stored = int(_SIZE_MARGIN * sum(found)) // len(found) if found else None
    if settings.container == "hdf5":
        return (stored or schema.sample_nbytes) + _JSON_NBYTES
    return tar.record_nbytes(schema, _JSON_NBYTES, stored)


def preparation_of(schema: Schema, settings: PackSettings) -> Preparation:
    """How objects are prepared."""
    return Preparation(
        inpaint=inpainted(schema, settings),
        max_nan_fraction=settings.max_nan_fraction,
        fill=settings.fill,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("write", folder, error) from error


def tasks_left(state: PackState, plan: PackPlan) -> list[int]:
    """Numbers of the unfinished shards, the largest first so that none ends late."""
    left = set(range(len(plan.slices))) - set(state.finished(plan))
    return sorted(left, key=lambda n: (plan.slices[n].start - plan.slices[n].stop, n))


def num_workers(plan: PackPlan, numbers: Sequence[int], jobs: int) -> int:
    """How many worker processes pack the given shards soonest; at least one, at most `jobs`."""
    num_samples = sum(plan.slices[n].stop - plan.slices[n].start for n in numbers)
    work_nbytes = num_samples * (plan.schema.sample_nbytes + _SAMPLE_WORK_NBYTES)
    return max(1, min(jobs, len(numbers), -(-work_nbytes // _WORKER_NBYTES)))


def make_tasks(
    state: PackState, plan: PackPlan, settings: PackSettings, numbers: Sequence[int]
) -> Iterator[ShardTask]:
    """Makes the tasks of the given shards, each on demand."""
    if not numbers:
        return
    candidates = state.open_candidates()
    preparation, codings = preparation_of(plan.schema, settings), codings_of(plan.schema, settings)
    for number in numbers:
        part = plan.slices[number]
        rows = candidates.read_row_group(number)
        check_source_paths(state.folder, rows["path"])
        yield ShardTask(
            number=number,
            path=state.out / part.split / part.name,
            container=settings.container,
            chunked=settings.chunked,
            schema=plan.schema,
            preparation=preparation,
            sample_ids=rows["sample_id"].to_pylist(),
            locations=list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True)),
            labels=label_rows(rows.select(list(plan.label_columns))),
            scalar_names=scalar_names(plan.schema, plan.label_columns),
            codings=codings,
        )


def label_rows(labels: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dicts for JSON: None instead of NaN and infinity."""
    if not labels.num_columns:
        return [{}] * labels.num_rows
    names, columns = labels.column_names, map(_json_column, labels.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _json_column(column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    if str(column.type) in ("float", "double"):
        return [v if v is None or math.isfinite(v) else None for v in values]
    return [None if _is_not_finite(v) else v for v in values]


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), -float("inf")))
