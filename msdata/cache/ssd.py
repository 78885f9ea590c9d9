"""The SSD tier: a slot file on a node's local disk, which outlives the job.

A manifest beside the file describes its content for people, and is checked before the next job
adopts it. If that job has other capacities, or this node another number, the shards that both jobs
keep here stay; content of another version of the data is never used. A power cut may lose recent
writes, so every record read from here is checked against the index.

The file is sparse: every record of the split has its place, only those kept take space. So shards
come and go without moving others, whatever their lengths, and no gap is too small for one.

Other users of the disk can guess the folder's name: the tier uses the folder only if this user owns
it and others cannot write to it, through the descriptor that was checked.
"""

from __future__ import annotations

import ctypes
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import SERVED, SSD_TIER, word
from msdata.cache.config import CacheConfig, CachedSplit, Owners
from msdata.cache.own_file import make_folder, open_own_folder
from msdata.cache.shared_file import join
from msdata.cache.slot_file import (
    MAGIC,
    Header,
    SlotFile,
    build,
    owners_checksum,
    read_header,
    write_all,
)
from msdata.cache.slot_places import SLOT, Layout, entries_at, is_held, usable_slots
from msdata.core.files import write_whole

MANIFEST = "manifest.json"
_RECORDS = "records"
# Share of the file system that stays free.
_SPARE = 0.02


def ssd_folder(config: CacheConfig, split: CachedSplit, node: int) -> Path:
    """The folder of a split's SSD tier; its name carries user and data set, but no job."""
    assert config.ssd_dir is not None
    is_simulated = config.node not in (None, SERVED)
    # Simulated nodes share one disk; on real nodes the number may change from job to job.
    place = f"-{word(config.node or '')}-n{node}" if is_simulated else ""
    name = f"msdata-{os.geteuid()}-{word(split.fingerprint)}-{word(split.name)}{place}"
    return config.ssd_dir / name


class SsdTier:
    """This process's use of its node's SSD tier.

    Args:
        config: sizes and names.
        split: the data.
        node: the node's number.
        planned: the arena's capacities and the owners of all shards computed from them.

    Attributes:
        path: the tier's folder.
        slots: the tier's content.

    Raises:
        StorageError: the file system refused, or other processes use it for other owners.
        OSError: the file system refused.
    """

    def __init__(
        self,
        config: CacheConfig,
        split: CachedSplit,
        node: int,
        planned: tuple[tuple[int, int], Owners],
    ) -> None:
        self.path = ssd_folder(config, split, node)
        planned_nbytes, owners = planned
        # The process that makes the file sets `most_nbytes`, which is not compared.
        wanted = Header(
            fingerprint=split.fingerprint,
            split=split.name,
            split_nbytes=split.nbytes,
            num_shards=len(split.shard_sizes),
            node=node,
            tier=SSD_TIER,
            planned_nbytes=planned_nbytes,
            most_nbytes=0,
            owners_crc32c=owners_checksum(owners),
            # A slot for every sample, whose number it has, for any later job; 24 bytes each.
            num_entries=len(split.checksums),
        )

        def fits(fd: int, is_alone: bool) -> bool:
            header = read_header(fd)
            if header is None or not header.is_of(split) or header.tier != SSD_TIER:
                return False
            is_same = replace(header, most_nbytes=0) == wanted
            if is_alone and not is_same:
                # Same data, other capacities or another node: most of the content is useful.
                made = self._header(fd, wanted, config.ssd_nbytes)
                if not change_shards(fd, made, split, owners):
                    return False
                _write_manifest(folder_fd, made)
                return True
            return is_same

        def make(fd: int) -> None:
            made = self._header(fd, wanted, config.ssd_nbytes)
            build(fd, made, split, owners, sparse_layout(made, split, owners))
            _write_manifest(folder_fd, made)

        make_folder(self.path.parent)
        folder_fd = open_own_folder(self.path)
        try:
            self._fd = join(self.path / _RECORDS, fits, make, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
        self._pid = os.getpid()
        try:
            self.slots = SlotFile(self._fd, split, is_mapped=False)
        except BaseException:
            self._leave()
            raise
        self._is_closed = False

    def _header(self, fd: int, wanted: Header, asked_nbytes: int) -> Header:
        """The wanted header with the available space, which includes the file's own blocks."""
        system = os.statvfs(self.path)
        spare = int(_SPARE * system.f_blocks * system.f_frsize)
        free = max(0, system.f_bavail * system.f_frsize - spare)
        return replace(wanted, most_nbytes=min(asked_nbytes, free + os.fstat(fd).st_blocks * 512))

    def close(self) -> None:
        """Leaves the tier, which stays for later jobs."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(OSError):
            # The records that the manifest promises must be on the disk.
            os.fsync(self._fd)
        self.slots.close()
        self._leave()

    def __del__(self) -> None:
        if hasattr(self, "_is_closed"):
            self.close()

    def _leave(self) -> None:
        if os.getpid() == self._pid:
            os.close(self._fd)


def _write_manifest(folder_fd: int, header: Header) -> None:
    content = {"records": _RECORDS, **vars(header)}
    folder = Path(f"/proc/self/fd/{folder_fd}")
    write_whole(folder / MANIFEST, json.dumps(content, indent=1).encode() + b"\n")


# Of Linux's fallocate(2).
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def sparse_layout(
    header: Header,
    split: CachedSplit,
    owners: Owners,
    preferred: NDArray[np.bool_] | None = None,
) -> Layout:
    """Slots and records at places that follow from their numbers, whichever shards are kept.

    Args:
        header: node, tier and size of the file.
        split: the data.
        owners: owner and tier of every shard.
        preferred: see `usable_slots`.
    """
    held = is_held(owners, header.node, header.tier)
    return Layout(
        first_slots=np.where(held, split.first_samples, -1),
        records_at=np.where(held, split.starts.of(split.first_samples), -1),
        num_slots=usable_slots(split, held, header.most_nbytes, preferred),
    )


def change_shards(fd: int, header: Header, split: CachedSplit, owners: Owners) -> bool:
    """Changes the shards of a slot file; the records of shards that it keeps stay.

    Args:
        fd: a file of the same data that no other process uses.
        header: the wanted header.
        split: the data.
        owners: owner and tier of every shard.

    Returns:
        False if the file system cannot take back the space of single records; then the file must
        be made again.

    Raises:
        OSError: the file system refused.
    """
    old = SlotFile(fd, split, is_mapped=False)
    had = old.layout.num_slots
    layout = sparse_layout(header, split, owners, preferred=had > 0)
    old.close()
    # A process that finds this half done makes the file again.
    write_all(fd, [bytes(len(MAGIC))], 0)
    entries, records = entries_at(header.num_shards), old.payload_at
    for shard in np.flatnonzero(layout.num_slots < had):
        first = split.first_samples[shard] + np.array([layout.num_slots[shard], had[shard]])
        start, stop = split.starts.of(first).tolist()
        if not _give_back(fd, records + start, stop - start):
            return False
        empty = bytes(int(first[1] - first[0]) * SLOT.itemsize)
        write_all(fd, [empty], entries + int(first[0]) * SLOT.itemsize)
    build(fd, header, split, owners, layout)
    return True


def _give_back(fd: int, start: int, nbytes: int) -> bool:
    """Returns the space of some bytes to the file system; returns False if that fails."""
    place = ctypes.c_int64(start), ctypes.c_int64(nbytes)
    return not ctypes.CDLL(None).fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, *place)
