"""What `msdata cache serve` does where services make the arenas themselves: under MPI, or alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msdata.cache.config import CacheConfig
from msdata.cache.member import MemberService
from msdata.cache.split import cached_split, owners_of_nodes, record_reader
from msdata.cache.stale_shm import remove_own_shared_memory
from msdata.cache.transport.group import Alone, EndedElsewhere, Group
from msdata.core.files import storage_error
from msdata.core.progress import bytes_text
from msdata.core.signals import ending_at_once, exit_code_of, ignore_signals
from msdata.dataset.dataset import Split
from msdata.errors import StorageError
from msdata.topology import Topology

_LOOK_S = 1.0
# How long the others may take to end.
_LEAVE_S = 5.0


def open_group(topology: Topology) -> Group:
    """All services of the job; without MPI where there is only this one.

    Args:
        topology: what the launcher's variables say; every rank is a service.

    Raises:
        MissingPackageError: mpi4py or an MPI library is absent.
        UsageError: the processes do not find each other.
    """
    if topology.num_ranks == 1:
        return Alone()
    from msdata.cache.transport.mpi_group import MpiGroup

    with ending_at_once():
        group = MpiGroup(topology)
    # All have been made, so nobody needs the names any more.
    remove_own_shared_memory()
    return group


@contextmanager
def ending_together(group: Group) -> Iterator[None]:
    """Has all services of a group end where one of them does, and one of them say why.

    What ended this one is raised here only where it is this one that says what ended all.

    Args:
        group: the services; they have ended afterwards.
    """
    cause: BaseException | None = None
    try:
        yield
    except EndedElsewhere:
        pass
    except BaseException as error:
        cause = error
    if group.size > 1:
        # Launchers send signals to all, one after the other, and the first one ends all.
        ignore_signals()
    if group.leave(exit_code_of(cause), _LEAVE_S) and cause is not None:
        raise cause


def serve_member(config: CacheConfig, split: Split, group: Group) -> None:
    """Keeps this node's arena until it, or another service of the job, is told to end.

    Args:
        config: sizes and names; `config.job` must be set.
        split: the data.
        group: all services of the job.

    Raises:
        StorageError: shared memory, SSD or another process stood in the way here.
        EndedElsewhere: it did elsewhere.
    """
    cached = cached_split(split)
    own = partial(owners_of_nodes, cached)
    with MemberService(group, config, cached, own, lambda: record_reader(split)) as service:
        try:
            _open(service, config.shm_dir)
            _say_what_is_served(service, config, group)
            _serve_until_told(service)
            ignore_signals()
        except KeyboardInterrupt:
            # A second signal would only leave more behind.
            ignore_signals()
            raise


def _open(service: MemberService, shm_dir: Path) -> None:
    try:
        service.open()
    except StorageError:
        raise
    except OSError as error:
        raise storage_error("keep a cache in", shm_dir, error) from error


def _say_what_is_served(service: MemberService, config: CacheConfig, group: Group) -> None:
    if group.rank:
        return
    for node, offer in enumerate(service.offers):
        ssd = f", {bytes_text(offer.ssd_nbytes)} of SSD" if offer.ssd_nbytes else ""
        print(f"node {node}: {bytes_text(offer.memory_nbytes)} of memory{ssd}")
    print(f"serving {len(service.offers)} nodes of job {config.job}", flush=True)


def _serve_until_told(service: MemberService) -> None:
    is_said = False
    look_at_s = time.monotonic() + _LOOK_S
    while service.turn():
        if is_said or time.monotonic() < look_at_s:
            continue
        look_at_s = time.monotonic() + _LOOK_S
        if service.describe()["is_full"]:
            print(f"node {service.node}: {service.num_filled:,} samples in memory", flush=True)
            is_said = True
