"""Makes the plan of a pack: lists the objects, finds their schema, joins labels, cuts shards."""

from __future__ import annotations

from pathlib import Path

from msdata.core.files import storage_error
from msdata.dataset import hdf5, tar
from msdata.errors import UsageError
from msdata.pack.candidates import plan_candidates
from msdata.pack.column_names import check_array_names
from msdata.pack.infer_schema import NUM_LOOKED_AT, infer_schema, with_pixel_scales
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackPlan, PackState
from msdata.schema import Schema
from msdata.sources.detect import detect_source

# Bytes of a JSON member, for sizing shards; a catalogue of twenty columns stays below.
_JSON_NBYTES = 512
SUFFIXES = {"tar": tar.SUFFIX, "hdf5": hdf5.SUFFIX}


def make_plan(state: PackState, settings: PackSettings) -> PackPlan:
    """The plan of this pack: the one it was begun with, or a new one.

    Raises:
        UsageError: it was begun with other settings, or they do not fit the data.
        DataError: the source holds nothing usable.
    """
    if state.has_plan():
        plan = state.load_plan(settings)
        state.remove_leftovers(plan)
        return plan
    try:
        return _make_plan(state, settings)
    except BaseException:
        # Nothing is begun: the same folder is to be had with mended options, without --resume.
        state.forget_unplanned()
        raise


def _make_plan(state: PackState, settings: PackSettings) -> PackPlan:
    source = detect_source(settings.source, settings.fits)
    objects = source.scan()
    schema = source.schema
    if schema is None:
        head = objects.slice(0, NUM_LOOKED_AT)
        locations = list(zip(head["path"].to_pylist(), head["row"].to_pylist(), strict=True))
        schema = infer_schema(source, locations)
    schema = with_pixel_scales(schema, settings.pixel_scales_arcsec or {})
    check_array_names(schema)
    _check_nan_fraction(schema, settings, inpainted(schema, settings))
    candidates = plan_candidates(
        objects, schema, settings, (_record_nbytes(schema, settings), SUFFIXES[settings.container])
    )
    if settings.fits is not None and not {"ra", "dec"} <= set(candidates.label_columns):
        found = "no catalogue was given"
        if settings.catalog is not None:
            found = f"catalogue {settings.catalog} has no columns ra and dec"
        raise UsageError(
            f"FITS files are cut around the objects' positions, but {found}; give one that has "
            "them with --catalog"
        )
    for split in {s.split for s in candidates.slices}:
        _make_folder(state.out / split)
    return state.save_plan(settings, schema, candidates)


def inpainted(schema: Schema, settings: PackSettings) -> tuple[str, ...]:
    """Names of the arrays to inpaint.

    Raises:
        UsageError: there is no such array, or it is no stack of images.
    """
    if settings.inpaint is None:
        return tuple(a.name for a in schema.arrays if a.may_have_nan)
    for name in settings.inpaint:
        if name not in schema.names:
            raise UsageError(
                f"--inpaint {name}: there is no such array; there are {', '.join(schema.names)}"
            )
        survey = schema[name]
        if len(survey.shape) != 3 or survey.dtype != "<f4" or survey.has_bands_last:
            raise UsageError(f"--inpaint {name}: it is no float32 (bands, height, width) array")
    return settings.inpaint


def _check_nan_fraction(schema: Schema, settings: PackSettings, filled: tuple[str, ...]) -> None:
    """Refuses a fraction that nothing would be held to; 1 asks for just that, of any arrays."""
    is_default = settings.max_nan_fraction in (PackSettings.max_nan_fraction, 1)
    if is_default or filled or any(array.bands for array in schema.arrays):
        return
    raise UsageError(
        f"--max-nan-fraction {settings.max_nan_fraction:g}: no array here has named bands; name "
        "those to be held to it, and filled, with --inpaint"
    )


def _record_nbytes(schema: Schema, settings: PackSettings) -> int:
    if settings.container == "hdf5":
        return schema.sample_nbytes + _JSON_NBYTES
    return tar.record_nbytes(schema, _JSON_NBYTES)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("write", folder, error) from error
