"""`--pack`: the fetched objects become a data set, and their files go once it is whole.

In this order, so that a kill at any moment costs nothing but time: the data set is packed (complete
with its `dataset.json`, or taken up again), every byte of it is checked, `.fetch/packed.json` says
so, and only then are the files of those objects removed that are in it. An object that the pack
rejected keeps its file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from msdata.catalog.columns import read_catalog
from msdata.core.checked_json import read_json
from msdata.core.checked_table import open_table, reading
from msdata.core.files import locked, refusals, write_whole
from msdata.core.options import num_jobs
from msdata.core.trusted_names import check_below
from msdata.dataset.index import FILE_NAME as INDEX_NAME
from msdata.dataset.index import IndexFile, file_sha256
from msdata.dataset.manifest import FILE_NAME as MANIFEST_NAME
from msdata.dataset.manifest import REJECTED_NAME, SOURCES_NAME, read_manifest
from msdata.dataset.rejected import read_rejected
from msdata.errors import DataError, UsageError
from msdata.fetch.journal import FETCHED, FOLDER, UNSETTLED, read_entries
from msdata.fetch.settings import OBJECTS, FetchSettings
from msdata.fetch.targets import Slice, read_targets
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackState
from msdata.sources.pickles import object_path
from msdata.verify.verify import verify_dataset

_MARKER_NAME = "packed.json"
_SOURCE_KINDS = {"sample_id": "text", "path": "text"}


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What became of the data set.

    Attributes:
        num_samples: in it; None where it is not packed yet.
        num_removed: objects whose files this run removed.
        num_rejected: objects that the pack rejected.
        note: why it is not packed yet; empty where it is.
    """

    num_samples: int | None = None
    num_removed: int = 0
    num_rejected: int = 0
    note: str = ""


def check_target(settings: FetchSettings) -> bool:
    """Looks at the folders before anything is asked for.

    Args:
        settings: the fetch; `pack` is the data set's folder, None for a tree of files.

    Returns:
        Whether the data set is there, whole and checked, so that objects need no files.

    Raises:
        UsageError: the folder holds another data set, or the objects went into another one.
        StorageError: the file system refused.
    """
    marker, data = _read_marker(settings.out), settings.pack
    if data is not None:
        out, inside = settings.out.absolute(), data.absolute()
        if out.is_relative_to(inside) or inside.is_relative_to(out / OBJECTS):
            raise UsageError(
                f"--pack {inside} and the objects' folder {out} lie in each other; give the data "
                "set a folder of its own"
            )
    if data is not None and (data / MANIFEST_NAME).exists():
        fingerprint = read_manifest(data).fingerprint
        if marker is not None and marker["fingerprint"] == fingerprint:
            return True
        if marker is None and _source_of(data) == str((settings.out / OBJECTS).absolute()):
            return False
        raise UsageError(
            f"--pack: {data} holds a data set already, which was not packed from {settings.out}; "
            "give a new folder"
        )
    if marker is None:
        if data is not None:
            PackState(data).check_folder(resume=_is_begun(data))
            # What pack itself would say after days of fetching.
            read_catalog(settings.catalog, id_column=settings.id_column, columns=())
        return False
    raise UsageError(
        f"the objects of {settings.out} went into the data set {marker['data']}, and their files "
        "were removed; give that folder to --pack (or where it is now), or fetch into a new folder"
    )


def check_unfinished(settings: FetchSettings, num_left: int) -> None:
    """Refuses to fetch objects for a data set that is finished without them.

    Raises:
        UsageError: there are such objects.
    """
    if num_left and settings.pack is not None and (settings.pack / MANIFEST_NAME).exists():
        raise UsageError(
            f"--pack: {settings.pack} is finished, and {num_left:,} objects are not in it; fetch "
            "these into folders of their own"
        )


def into_shards(settings: FetchSettings, *, keep_pickles: bool, is_quiet: bool = True) -> Shards:
    """Packs the whole catalog's objects once all slices are through, then removes their files.

    Args:
        settings: the fetch, with `pack`.
        keep_pickles: leave the files.
        is_quiet: no progress line.

    Raises:
        UsageError: catalog and folder do not fit.
        DataError: the data set that was packed is damaged, or lacks objects.
        StorageError: the file system refused.
    """
    ids, num_left = _settled(settings)
    if num_left:
        note = f"{num_left:,} objects of other slices are left: the last to finish packs"
        return Shards(note=note)
    # Of slices that finish at the same moment one packs.
    with locked(settings.out / FOLDER / "pack.lock") as is_mine:
        if not is_mine:
            return Shards(note="another slice is packing; should it fail, run any slice again")
        return _packed(settings, ids, keep_pickles=keep_pickles, is_quiet=is_quiet)


def _packed(
    settings: FetchSettings, ids: set[str], *, keep_pickles: bool, is_quiet: bool
) -> Shards:
    assert settings.pack is not None
    data, objects = settings.pack, settings.out / OBJECTS
    is_checked = check_target(settings)
    if is_checked:
        manifest = read_manifest(data)
        num_rejected = int(manifest.provenance.get("num_rejected", 0))
    else:
        pack_settings = PackSettings(
            source=objects,
            out=data,
            catalog=settings.catalog,
            id_column=settings.id_column,
            pixel_scales_arcsec=dict(settings.pixel_scales_arcsec),
        )
        report = pack(pack_settings, jobs=num_jobs(None), resume=_is_begun(data), is_quiet=is_quiet)
        manifest, num_rejected = report.manifest, report.num_rejected
    num_removed = 0
    if not keep_pickles:
        packed = _packed_ids(data)
        if not is_checked:
            _check(settings, ids, packed)
            marker = {"data": str(data.absolute()), "fingerprint": manifest.fingerprint}
            content = json.dumps(marker, indent=1) + "\n"
            write_whole(settings.out / FOLDER / _MARKER_NAME, content.encode())
        # Their paths follow from their ids: no file's word is taken for what is removed.
        paths = (objects / object_path(i, ".npy") for i in sorted(ids & packed))
        num_removed = _remove(objects, paths)
    return Shards(
        num_samples=manifest.num_samples, num_removed=num_removed, num_rejected=num_rejected
    )


def _is_begun(data: Path) -> bool:
    state = PackState(data)
    return state.is_complete or state.folder.exists()


def _settled(settings: FetchSettings) -> tuple[set[str], int]:
    """Ids of the whole catalog's fetched objects, and how many objects are not settled yet."""
    targets, _ = read_targets(settings.catalog, id_column=settings.id_column, part=Slice())
    wanted = {target.sample_id for target in targets}
    entries = read_entries(settings.out, wanted, keep_notes=False)
    fetched, num_left = set[str](), 0
    for target in targets:
        entry = entries.get(target.sample_id)
        if entry is None or not entry.is_of(target) or entry.state == UNSETTLED:
            num_left += 1
        elif entry.state == FETCHED:
            fetched.add(target.sample_id)
    return fetched, num_left


def _source_of(data: Path) -> str:
    """The folder that a data set was packed from; empty where it does not say."""
    path, cure = data / SOURCES_NAME, "give a new folder"
    try:
        with open_table(path, _SOURCE_KINDS, cure=cure) as file, reading(path, cure):
            return str((file.schema_arrow.metadata or {}).get(b"source", b"").decode())
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _packed_ids(data: Path) -> set[str]:
    """Ids of a data set's samples, by the index that its `dataset.json` vouches for."""
    manifest = read_manifest(data)
    if file_sha256(data / INDEX_NAME) != manifest.index_sha256:
        raise DataError(
            f"{data / INDEX_NAME} was altered; the objects' files are kept: run 'msdata verify "
            f"{data}'"
        )
    table = IndexFile(data, manifest).read_rows(0, manifest.num_samples, ["sample_id"])
    return set(table["sample_id"].to_pylist())


def _check(settings: FetchSettings, ids: set[str], packed: set[str]) -> None:
    """Makes sure that no object is lost with its file."""
    assert settings.pack is not None
    data, objects = settings.pack, settings.out / OBJECTS
    cure = (
        "the objects' files are kept; pack them into a new folder: "
        f"msdata pack {objects} NEW --catalog {settings.catalog}"
    )
    missing = ids - packed
    if missing:
        with refusals("read", data / REJECTED_NAME):
            missing -= {row.sample_id for row in read_rejected(data / REJECTED_NAME)}
    if missing:
        raise DataError(f"{data} lacks {len(missing):,} objects, such as {min(missing)}; {cure}")
    packed_ns = (data / MANIFEST_NAME).stat().st_mtime_ns
    for sample_id in sorted(ids & packed):
        with suppress(FileNotFoundError):
            if (objects / object_path(sample_id, ".npy")).stat().st_mtime_ns > packed_ns:
                raise DataError(f"object {sample_id} was fetched after {data} was packed; {cure}")
    report = verify_dataset(data, jobs=num_jobs(None))
    if report.faults:
        raise DataError(
            f"{data} has {len(report.faults)} faults, the first: {report.faults[0].message}; the "
            f"objects' files are kept: run 'msdata verify --repair {data}', then the same command"
        )


def _read_marker(out: Path) -> dict[str, str] | None:
    path = out / FOLDER / _MARKER_NAME
    try:
        found = read_json(path, cure="fetch into a new folder", has_paths=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {name: found[name].read_as(str) for name in ("data", "fingerprint")}


def _remove(objects: Path, paths: Iterable[Path]) -> int:
    """Removes objects' files and the folders that they leave empty; returns how many."""
    num_removed, folders = 0, set[Path]()
    for path in paths:
        if path.parent not in folders:
            check_below(objects, path)
        with refusals("remove", path), suppress(FileNotFoundError):
            path.unlink()
            num_removed += 1
        folders.update(p for p in path.parents if p.is_relative_to(objects))
    for folder in sorted(folders, key=lambda p: len(p.parts), reverse=True):
        # Objects that were rejected keep theirs.
        with suppress(OSError):
            folder.rmdir()
    return num_removed
