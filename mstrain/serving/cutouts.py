"""Cutouts of positions: fetched into a folder and packed there, as the commands do it.

It stands alone beside `positions`, which predicts: here nothing knows of networks but the schema
and settings of a training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

import msdata
from msdata.catalog.positions import Positions
from msdata.dataset.manifest import REJECTED_NAME
from msdata.dataset.rejected import read_rejected
from msdata.errors import DataError, MsdataError, UsageError
from msdata.fetch.journal import FETCHED, REFUSED, UNSETTLED, Entry, read_entries
from msdata.fetch.run import fetch
from msdata.fetch.service import Service
from msdata.fetch.settings import OBJECTS, FetchSettings
from msdata.fetch.targets import Slice, read_targets
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.schema import MANTIS_SHRIMP, Schema
from mstrain.evaluation.run_info import TrainedRun, schema_difference

# Services resample these to any scale; the scale of Pan-STARRS is that of its stacks.
_RESAMPLED = ("galex", "unwise")


def fetch_cutouts(
    trained: TrainedRun,
    positions: Positions,
    scratch: Path,
    services: Mapping[str, Service],
    *,
    contact: str | None,
    is_quiet: bool,
) -> tuple[msdata.Dataset, tuple[Entry, ...]]:
    """Fetches and packs the cutouts of positions, in the form that a network was trained on.

    Args:
        trained: the network's run.
        positions: where to look.
        scratch: folder for the objects and the data set.
        services: where to ask and how often, by name.
        contact: address for the operators of the services.
        is_quiet: show no progress.

    Returns:
        The data set, and the positions that are not in it, with the reason.

    Raises:
        UsageError: the services cannot give what the network takes.
        DataError: no position is in the data set.
        StorageError: the file system refused.
    """
    catalog = scratch / "positions.parquet"
    settings = _fetch_settings(trained, catalog, scratch / "fetched", services, contact)
    pq.write_table(positions.table, catalog)
    fetch(settings, is_quiet=is_quiet)
    entries = _entries(settings)
    failures = [entry for entry in entries if entry.state != FETCHED]
    if len(failures) == len(entries):
        raise _nothing(failures)
    out = scratch / "data"
    asked = PackSettings(
        source=settings.out / OBJECTS,
        out=out,
        catalog=catalog,
        unlabelled=True,
        pixel_scales_arcsec=dict(settings.pixel_scales_arcsec),
    )
    try:
        pack(asked, jobs=1)
    except DataError:
        rejected = _rejected(entries, out)
        if not rejected:
            raise
        raise _nothing([*rejected, *failures]) from None
    return msdata.open(out), (*failures, *_rejected(entries, out))


@contextmanager
def without_scratch(scratch: Path) -> Iterator[None]:
    """Takes a folder out of messages, which must not send the user where nothing will be."""
    try:
        yield
    except MsdataError as error:
        said = str(error).partition("; nothing finished is lost")[0]
        for name in ("data", "fetched", "positions.parquet"):
            said = said.replace(str(scratch / name), "the positions")
        if said == str(error):
            raise
        raise (UsageError if isinstance(error, UsageError) else DataError)(said) from error


def _fetch_settings(
    trained: TrainedRun,
    catalog: Path,
    out: Path,
    services: Mapping[str, Service],
    contact: str | None,
) -> FetchSettings:
    """Settings of a fetch that gives the arrays of the training.

    Raises:
        UsageError: the services cannot give them.
    """
    ours = {array.name: array for array in trained.schema.arrays}
    scales = {
        name: float(ours[name].pixel_scale_arcsec or 0)
        for name in _RESAMPLED
        if name in ours and ours[name].pixel_scale_arcsec != MANTIS_SHRIMP[name].pixel_scale_arcsec
    }
    settings = FetchSettings(
        catalog=catalog,
        out=out,
        services=services,
        pixel_scales_arcsec=scales,
        contact=contact,
    )
    given = Schema(name="fetched", arrays=tuple(a.survey for a in settings.adapters()))
    difference = schema_difference(trained.schema, given, trained.config.augment.surveys)
    if difference:
        raise UsageError(
            f"cannot fetch cutouts for {trained.path}: {difference}; pack data of your own, then "
            "'mstrain predict RUN DATA OUT.parquet'"
        )
    return settings


def _entries(settings: FetchSettings) -> list[Entry]:
    """What became of each position, in the order of the fetch."""
    targets, _ = read_targets(settings.catalog, id_column=None, part=Slice())
    found = read_entries(settings.out)
    return [
        found.get(target.sample_id)
        or Entry(
            sample_id=target.sample_id,
            state=UNSETTLED,
            ra=target.ra,
            dec=target.dec,
            reason="it was not asked for",
        )
        for target in targets
    ]


def _nothing(failures: Sequence[Entry]) -> DataError:
    """The error for positions none of which can be predicted."""
    first = failures[0]
    where = "" if first.ra is None else f" {first.ra:.5f} {first.dec:+.5f}"
    by = f"service {first.service}: " if first.service else ""
    more = f"; and {len(failures) - 1:,} more" if len(failures) > 1 else ""
    cure = "; try again later" if first.state == UNSETTLED else ""
    return DataError(f"cannot predict the position{where}: {by}{first.reason}{more}{cure}")


def _rejected(entries: Sequence[Entry], out: Path) -> list[Entry]:
    """The positions whose cutouts the pack rejected."""
    places = {entry.sample_id: (entry.ra, entry.dec) for entry in entries}
    try:
        rows = list(read_rejected(out / REJECTED_NAME))
    except FileNotFoundError:
        return []
    return [
        Entry(
            sample_id=row.sample_id,
            state=REFUSED,
            ra=places[row.sample_id][0],
            dec=places[row.sample_id][1],
            reason=row.reason,
        )
        for row in rows
    ]
