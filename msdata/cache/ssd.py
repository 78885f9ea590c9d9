"""The SSD tier: a slot file on a node's local disk, which outlives the job.

A manifest beside it says what it holds, readable for people and checked before the next job adopts
it. Where that job has other capacities, or this node another number, the shards that both jobs want
here stay; contents of another version of the data are never used. Disks lose what was not written
through before a power cut, so every record read from here is held against the index's checksum.

The disk may be shared with other users, who can guess the folder's name: it is used only if it is
this user's and closed to others, by the descriptor that was checked.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from msdata.cache.arena import SERVED, SSD_TIER, word
from msdata.cache.config import CacheConfig, CachedSplit, Owners
from msdata.cache.own_file import make_folder, open_own_folder
from msdata.cache.reorder import reorder
from msdata.cache.shared_file import join, leave
from msdata.cache.slot_file import Header, SlotFile, build, owners_checksum, read_header
from msdata.core.files import write_whole

MANIFEST = "manifest.json"
_RECORDS = "records"
# Part of the file system that stays free.
_SPARE = 0.02


def ssd_folder(config: CacheConfig, split: CachedSplit, node: int) -> Path:
    """Where the SSD tier of one split lies; its name carries user and data set, but no job."""
    assert config.ssd_dir is not None
    is_pretended = config.node not in (None, SERVED)
    # Pretended nodes share one disk; on real ones the number may change from job to job.
    place = f"-{word(config.node or '')}-n{node}" if is_pretended else ""
    name = f"msdata-{os.geteuid()}-{word(split.fingerprint)}-{word(split.name)}{place}"
    return config.ssd_dir / name


class SsdTier:
    """This process's use of its node's SSD tier.

    Args:
        config: sizes and names.
        split: the data.
        node: number of the node.
        planned: capacities, and the owners of all shards reckoned with them, as the arena has
            them.

    Attributes:
        path: its folder.
        slots: its content.
        is_adopted: whether it has records of an earlier job.

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
        # Room is asked for by whoever makes the file; `most_nbytes` plays no part in what fits.
        wanted = Header(
            fingerprint=split.fingerprint,
            split=split.name,
            sample_nbytes=split.sample_nbytes,
            num_shards=len(split.shard_sizes),
            node=node,
            tier=SSD_TIER,
            planned_nbytes=planned_nbytes,
            most_nbytes=0,
            owners_crc32c=owners_checksum(owners),
            # For all that a later job may want here; 16 bytes a sample.
            num_entries=len(split.checksums),
        )

        def fits(fd: int, is_alone: bool) -> bool:
            header = read_header(fd)
            if header is None or not header.is_of(split) or header.tier != SSD_TIER:
                return False
            if is_alone and not _same(header, wanted):
                # Of the same data for other capacities or another node: most of it is of use.
                made = self._header(fd, wanted, config.ssd_nbytes)
                _write_manifest(folder_fd, reorder(fd, made, split, owners))
                return True
            return _same(header, wanted)

        def make(fd: int) -> None:
            made = self._header(fd, wanted, config.ssd_nbytes)
            build(fd, made, split, owners)
            _write_manifest(folder_fd, made)

        make_folder(self.path.parent)
        folder_fd = open_own_folder(self.path)
        try:
            self._fd = join(self.path / _RECORDS, fits, make, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
        self._pid = os.getpid()
        try:
            self.slots = SlotFile(self._fd, is_mapped=False)
        except BaseException:
            self._leave()
            raise
        self.is_adopted = self.slots.num_ready > 0
        self._is_closed = False

    def _header(self, fd: int, wanted: Header, asked_nbytes: int) -> Header:
        """What is wanted, with the room that there is; what the file has already counts as such."""
        had_nbytes = os.fstat(fd).st_blocks * 512
        most_nbytes = min(asked_nbytes, _room(self.path, asked_nbytes) + had_nbytes)
        return Header(**{**vars(wanted), "most_nbytes": most_nbytes})

    def close(self) -> None:
        """Leaves the tier, which stays for later jobs."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(OSError):
            # What the manifest promises should be on the disk, not on its way there.
            os.fsync(self._fd)
        self.slots.close()
        self._leave()

    def __del__(self) -> None:
        if hasattr(self, "_is_closed"):
            self.close()

    def _leave(self) -> None:
        leave(self._fd, self.path / _RECORDS, self._pid, is_kept=True)


def _same(found: Header, wanted: Header) -> bool:
    return {**vars(found), "most_nbytes": 0} == vars(wanted)


def _room(folder: Path, asked_nbytes: int) -> int:
    file_system = os.statvfs(folder)
    spare = int(_SPARE * file_system.f_blocks * file_system.f_frsize)
    return min(asked_nbytes, max(0, file_system.f_bavail * file_system.f_frsize - spare))


def _write_manifest(folder_fd: int, header: Header) -> None:
    content = {"records": _RECORDS, **vars(header)}
    folder = Path(f"/proc/self/fd/{folder_fd}")
    write_whole(folder / MANIFEST, json.dumps(content, indent=1).encode() + b"\n")
