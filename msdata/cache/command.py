"""`msdata cache`: serve a node's cache to other nodes, show caches, remove those of dead jobs."""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from msdata.cache.arena import own_arenas, peers_name, strange_arenas, word
from msdata.cache.budget import memory_budget
from msdata.cache.config import FORMER_FILLS, GIB, WARMUPS, CacheConfig
from msdata.cache.service import Service
from msdata.cache.shared_file import remove_if_unused
from msdata.cache.split import cached_split, owners_of_nodes, record_reader
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.status import describe, render_status
from msdata.cache.transport.group import Group, agree, ending_together
from msdata.cache.transport.listen import LOOPBACK
from msdata.cache.transport.mpi_group import open_group
from msdata.cache.transport.rendezvous import FolderGroup
from msdata.core.files import refusals
from msdata.core.options import add_former
from msdata.core.signals import ignore_signals
from msdata.core.terminal import raw
from msdata.core.text import bytes_text
from msdata.dataset.dataset import open_dataset
from msdata.errors import UsageError
from msdata.topology import from_env, job_name, node_name

WHEN_INTERRUPTED = "arenas that ranks still use stay with them"
_FULL_POLL_S = 1.0
_REDRAW_S = 1.0
# Moves to the upper left corner and clears the screen.
_CLEAR = "\x1b[H\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata cache`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = commands.add_parser(
        "serve",
        help="run one process per node beside the ranks: keeps their arena, fills it, serves it to "
        "other nodes",
    )
    _add_serve_arguments(serve)
    status = commands.add_parser("status", help="show your arenas on this node")
    status.add_argument(
        "data",
        type=Path,
        nargs="?",
        help="show only caches of this data set, with their forecast, and redraw on a terminal",
    )
    status.add_argument("--split", default="train", help="cached split (default: %(default)s)")
    status.add_argument("--once", action="store_true", help="print once, also on a terminal")
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    clean = commands.add_parser("clean", help="remove your arenas that no process uses")
    size = commands.add_parser("size", help="print the size in GiB that a cache may have here")
    for command in (serve, status, clean, size):
        command.add_argument(
            "--shm-dir",
            type=Path,
            default=CacheConfig.shm_dir,
            help="folder for shared memory (default: %(default)s)",
        )


def _add_serve_arguments(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("data", type=Path, help="folder of the data set")
    serve.add_argument(
        "--memory-gib",
        type=_gib_or_auto,
        metavar="auto|N",
        help="shared memory of this node in GiB; auto (default) takes three quarters of what is "
        "free",
    )
    serve.add_argument("--ssd-dir", type=Path, help="folder on a local SSD for the second tier")
    serve.add_argument(
        "--ssd-gib",
        type=_gib,
        default=CacheConfig.ssd_gib,
        help="space on that SSD in GiB (default: %(default)g)",
    )
    serve.add_argument(
        "--warmup",
        choices=WARMUPS,
        default=CacheConfig.warmup,
        help="blocking: ranks wait until all nodes are full; background: ranks start at once "
        "(default: %(default)s)",
    )
    add_former(serve, "--fill", "warmup", tuple(FORMER_FILLS), FORMER_FILLS)
    serve.add_argument(
        "--transport",
        choices=("mpi", "zmq"),
        help="transport between nodes (default: zmq with --peers-dir, else mpi)",
    )
    serve.add_argument(
        "--peers-dir",
        type=Path,
        help="zmq: folder that all nodes see, in which the services find each other",
    )
    serve.add_argument(
        "--nodes",
        type=int,
        help="zmq: number of nodes that serve (default: from the launcher)",
    )
    serve.add_argument("--split", default="train", help="cached split (default: %(default)s)")
    serve.add_argument("--job", help="name of the ranks' job (default: from the launcher)")
    serve.add_argument(
        "--listen",
        metavar="ADDRESS|INTERFACE",
        help="zmq: where to listen (default: the address that other nodes reach; 127.0.0.1 in a "
        "job of one node)",
    )
    serve.add_argument(
        "--host",
        help="zmq: name under which other nodes reach this one (default: the listening address)",
    )
    serve.add_argument(
        "--encrypt",
        action=argparse.BooleanOptionalAction,
        help="zmq: encrypt what travels between nodes, on by default; --no-encrypt takes half the "
        "processor time or less, on a network that others cannot listen to",
    )
    serve.add_argument(
        "--metrics-dir", type=Path, help="folder for this service's counters (.prom)"
    )


def _gib_or_auto(word: str) -> float | None:
    return None if word == "auto" else _gib(word)


def _gib(word: str) -> float:
    try:
        gib = float(word)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise argparse.ArgumentTypeError(f"must be a size in GiB >= 0, got {word!r}")
    return gib


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions; returns the exit code."""
    actions = {"serve": _serve, "status": _status, "clean": _clean, "size": _size}
    return actions[args.action](args)


def _serve(args: argparse.Namespace) -> int:
    _check_transport(args)
    _allow_many_connections()
    topology = from_env()
    num_nodes = topology.num_ranks if args.nodes is None else args.nodes
    group = open_group(topology) if args.peers_dir is None else Group()
    with ending_together(group):
        is_alone = args.host is args.listen is None and num_nodes == 1
        given = {f.name: vars(args)[f.name] for f in fields(CacheConfig) if f.name in args}
        config = replace(
            CacheConfig(**given),
            job=args.job or job_name(),
            listen=LOOPBACK if is_alone else args.listen,
        )
        split = agree(group, lambda: open_dataset(args.data).split(args.split))
        cached = cached_split(split)
        if config.peers_dir is not None:
            name = peers_name(config, cached)
            group = FolderGroup(config.peers_dir, name, word(node_name()), num_nodes)
        with Service(
            group,
            config,
            cached,
            partial(owners_of_nodes, cached),
            lambda: record_reader(split),
            host=args.host,
            is_encrypted=args.encrypt is not False,
        ) as service:
            _keep_arena(service, config, group)
    return 0


def _check_transport(args: argparse.Namespace) -> None:
    transport = args.transport or ("mpi" if args.peers_dir is None else "zmq")
    of_zmq = (args.peers_dir, args.nodes, args.host, args.listen, args.encrypt)
    if transport == "zmq" and args.peers_dir is None:
        raise UsageError("--transport zmq needs --peers-dir, a folder that all nodes see")
    if args.nodes is not None and args.nodes < 1:
        raise UsageError(f"--nodes must be at least 1, got {args.nodes}")
    if transport == "mpi" and any(option is not None for option in of_zmq):
        raise UsageError(
            "--peers-dir, --nodes, --host, --listen and --encrypt need --transport zmq"
        )


def _keep_arena(service: Service, config: CacheConfig, group: Group) -> None:
    """Keeps this node's arena until this service or another one of the job is told to end."""
    try:
        with refusals("keep a cache in", config.shm_dir):
            service.open()
        if group.rank == 0 or not group.ends_together:
            _print_offers(service, config)
        _serve_until_end(service)
        ignore_signals()
    except KeyboardInterrupt:
        # A second signal would interrupt the cleanup.
        ignore_signals()
        raise


def _print_offers(service: Service, config: CacheConfig) -> None:
    for node, offer in enumerate(service.offers):
        ssd = f", {bytes_text(offer.ssd_nbytes)} of SSD" if offer.ssd_nbytes else ""
        print(f"node {node}: {bytes_text(offer.memory_nbytes)} of memory{ssd}")
    print(f"serving {len(service.offers)} nodes of job {config.job}", flush=True)


def _serve_until_end(service: Service) -> None:
    is_printed = False
    look_at_s = time.monotonic() + _FULL_POLL_S
    while service.turn():
        if is_printed or time.monotonic() < look_at_s:
            continue
        look_at_s = time.monotonic() + _FULL_POLL_S
        if service.describe()["is_full"]:
            print(f"node {service.node}: {service.num_filled:,} samples in memory", flush=True)
            is_printed = True


def _allow_many_connections() -> None:
    """Raises the limit of open files, usually 1,024: every rank may have several connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _status(args: argparse.Namespace) -> int:
    split = None if args.data is None else cached_split(open_dataset(args.data).split(args.split))

    def look() -> list[dict[str, Any]]:
        found = (describe(path, split) for path in own_arenas(args.shm_dir))
        return [status for status in found if status is not None]

    _warn_of_strange(args.shm_dir)
    if args.json:
        print(json.dumps(look()))
    elif split is None or args.once or not sys.stdout.isatty():
        print(render_status(look(), str(args.shm_dir)))
    else:
        _watch(lambda: render_status(look(), str(args.shm_dir)))
    return 0


def _watch(render: Callable[[], str]) -> None:
    """Redraws the terminal until Ctrl-C, its normal end."""
    with suppress(KeyboardInterrupt):
        while True:
            text = render()
            raw(sys.stdout).write(_CLEAR)
            sys.stdout.write(f"{text}\n\nCtrl-C ends this view\n")
            sys.stdout.flush()
            time.sleep(_REDRAW_S)


def _clean(args: argparse.Namespace) -> int:
    removed = [path for path in own_arenas(args.shm_dir) if remove_if_unused(path)]
    for path in (*removed, *remove_dead_shared_memory(args.shm_dir)):
        print(f"removed {path}")
    _warn_of_strange(args.shm_dir)
    return 0


def _warn_of_strange(shm_dir: Path) -> None:
    strange = strange_arenas(shm_dir)
    if strange:
        print(
            f"skipped {len(strange)} named like your arenas that are not regular files or belong "
            f"to another user, such as {str(strange[0])!a}",
            file=sys.stderr,
        )


def _size(args: argparse.Namespace) -> int:
    planned_nbytes, _ = memory_budget(None, args.shm_dir)
    print(f"{math.floor(10 * planned_nbytes / GIB) / 10}")
    return 0
