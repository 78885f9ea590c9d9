"""The arena: a node's shared memory that holds records, in a file that every rank maps.

Its name carries user, job, data set and split, so two users or two jobs on one node never share
one. It exists while a rank or a service uses it; the last to leave removes it. If all of them were
killed, the next start of any of the user's jobs finds its lock free and removes it; the next start
of the same job reuses its contents.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from msdata.cache.budget import memory_budget
from msdata.cache.config import CacheConfig, CachedSplit, Own
from msdata.cache.own_file import is_own_file, open_own
from msdata.cache.shared_file import join, leave, remove_if_last, remove_if_unused
from msdata.cache.slot_file import Header, SlotFile, build, owners_checksum, read_header
from msdata.cache.slot_places import Layout, is_held, packed, usable_slots
from msdata.errors import StorageError

MEMORY_TIER, SSD_TIER = 0, 1
# Marks the name of an arena that a service made for the node; a word follows where several services
# share a machine.
SERVED = "served"
_PREFIX = "msdata"
_T = TypeVar("_T")


def arena_path(config: CacheConfig, split: CachedSplit, node: int) -> Path:
    """The path of a job's arena for one split on one node.

    Args:
        config: job, node and folder; `config.job` must be set.
        split: the data.
        node: the node's number; `config.node` takes precedence.
    """
    place = f"n{node}" if config.node is None else config.node
    words = [word(config.job or ""), split.fingerprint, word(split.name), word(place)]
    return config.shm_dir / "-".join([_user_prefix(), *words])


def peers_name(config: CacheConfig, split: CachedSplit) -> str:
    """The name of a job's split in the folder by which its nodes find each other."""
    return f"{word(config.job or '')}-{split.fingerprint}-{word(split.name)}"


def remove_stale_arenas(shm_dir: Path, own_job: str) -> list[Path]:
    """Removes this user's unused arenas, except those of the job that is starting.

    Args:
        shm_dir: the folder for shared memory.
        own_job: the job whose arenas stay.

    Returns:
        The removed files.
    """
    mine = f"{_user_prefix()}-{word(own_job)}-"
    return [p for p in own_arenas(shm_dir) if not p.name.startswith(mine) and remove_if_unused(p)]


def own_arenas(shm_dir: Path) -> list[Path]:
    """This user's arenas, used or not; regular files of this user only."""
    return [path for path in _named_like_arenas(shm_dir) if is_own_file(path)]


def strange_arenas(shm_dir: Path) -> list[Path]:
    """Files named like this user's arenas that are links, FIFOs or another user's."""
    return [path for path in _named_like_arenas(shm_dir) if not is_own_file(path)]


def _named_like_arenas(shm_dir: Path) -> list[Path]:
    return sorted(shm_dir.glob(f"{_user_prefix()}-*"))


def _user_prefix() -> str:
    return f"{_PREFIX}-{os.geteuid()}"


def word(text: str) -> str:
    """The text with every character replaced that is unsafe between dashes in a file name."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", text)[:60]


def peek(path: Path, look: Callable[[SlotFile], _T | None]) -> _T | None:
    """Inspects an arena without joining it.

    Args:
        path: the arena.
        look: receives the slots, which are valid only during the call.

    Returns:
        The result of `look`; None if the arena is gone or invalid.
    """
    with (
        suppress(OSError),
        os.fdopen(open_own(path, os.O_RDONLY), "rb") as file,
        closing(SlotFile(file.fileno(), is_mapped=False)) as slots,
    ):
        return look(slots)
    return None


class Arena:
    """This process's use of its node's arena.

    Args:
        config: sizes and names; `config.job` must be set.
        split: the data.
        node: the node's number.
        own: computes the owners of all shards from a node's capacities; None joins an existing
            arena as it is.

    Attributes:
        path: the arena's file.
        slots: the arena's content.
        is_made_here: whether this process made the arena.
        removed: stale arenas of other jobs that this process removed.

    Raises:
        StorageError: the file system refused, or something else has the arena's name.
        OSError: the folder for shared memory does not exist.
    """

    def __init__(self, config: CacheConfig, split: CachedSplit, node: int, own: Own | None) -> None:
        self.path = arena_path(config, split, node)
        self.removed = remove_stale_arenas(config.shm_dir, config.job or "")
        self.is_made_here = False

        def fits(fd: int, is_alone: bool) -> bool:
            header = read_header(fd)
            if header is None or not header.is_of(split) or header.tier != MEMORY_TIER:
                return False
            return own is None or not is_alone or _is_as_asked(header, config, node, own)

        def make(fd: int) -> None:
            if own is None:
                raise StorageError("the processes that made it have ended")
            self.is_made_here = True
            planned, most = memory_budget(
                config.memory_nbytes, config.shm_dir, config.reserved_nbytes
            )
            owners = own(planned, config.ssd_nbytes)
            held = is_held(owners, node, MEMORY_TIER)
            header = Header(
                fingerprint=split.fingerprint,
                split=split.name,
                split_nbytes=split.nbytes,
                num_shards=len(split.shard_sizes),
                node=node,
                tier=MEMORY_TIER,
                planned_nbytes=(planned, config.ssd_nbytes),
                most_nbytes=most,
                owners_crc32c=owners_checksum(owners),
                num_entries=int(split.shard_sizes[held].sum()),
            )
            layout = Layout(
                first_slots=packed(held, split.shard_sizes),
                records_at=packed(held, split.shard_nbytes),
                num_slots=usable_slots(split, held, most),
            )
            build(fd, header, split, owners, layout)

        self._fd = join(self.path, fits, make)
        self._pid = os.getpid()
        try:
            self.slots = SlotFile(self._fd, split, is_mapped=True)
        except BaseException:
            leave(self._fd, self.path, self._pid)
            raise
        # For processes that end without closing; their descriptor stays open until the end.
        self._at_exit = weakref.finalize(self, remove_if_last, self._fd, self.path, self._pid)

    def close(self) -> None:
        """Leaves the arena; the last to do so removes it."""
        if self._at_exit.detach() is not None:
            self.slots.close()
            leave(self._fd, self.path, self._pid)

    def __del__(self) -> None:
        if hasattr(self, "_at_exit"):
            self.close()


def _is_as_asked(header: Header, config: CacheConfig, node: int, own: Own) -> bool:
    """Whether an arena left by a killed job equals the one that this job would make."""
    memory, ssd = header.planned_nbytes
    return (
        header.node == node
        and config.memory_nbytes in (None, memory)
        and config.ssd_nbytes == ssd
        # Less may have fitted beside the dead job's processes than fits now.
        and header.most_nbytes == memory
        # The same job may have been restarted on another number of nodes.
        and header.owners_crc32c == owners_checksum(own(memory, ssd))
    )
