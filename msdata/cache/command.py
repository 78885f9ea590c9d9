"""`msdata cache`: serve a node's cache to other nodes, show caches, remove what dead jobs left."""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msdata.cache.arena import own_arenas, strange_arenas
from msdata.cache.budget import memory_budget
from msdata.cache.config import FILL_MODES, GIB, CacheConfig
from msdata.cache.serve import ending_together, open_group, serve_member
from msdata.cache.service import NodeService
from msdata.cache.shared_file import remove_if_unused
from msdata.cache.split import cached_split, record_reader
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.status import describe, look_at
from msdata.cache.status_text import render_status
from msdata.cache.transport.group import agree
from msdata.cache.transport.listen import LOOPBACK
from msdata.core.terminal import raw
from msdata.dataset.dataset import open_dataset
from msdata.errors import UsageError
from msdata.topology import from_env, job_name, num_slurm_nodes

WHEN_INTERRUPTED = "arenas that ranks still use stay with them"
_LOOK_S = 0.5
_SHM_DIR = Path("/dev/shm")
_REDRAW_S = 1.0
# To the upper left corner, and clear what is there.
_CLEAR = "\x1b[H\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata cache`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = commands.add_parser(
        "serve",
        help="one process a node beside the ranks: keeps their arena, fills it, serves it to peers",
    )
    _add_serve_arguments(serve)
    status = commands.add_parser("status", help="show your arenas on this node")
    status.add_argument(
        "data",
        type=Path,
        nargs="?",
        help="only caches of this data set, beside their forecast; redrawn on a terminal",
    )
    status.add_argument("--split", default="train", help="the split that is cached (train)")
    status.add_argument("--once", action="store_true", help="on a terminal too, look only once")
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    clean = commands.add_parser("clean", help="remove your arenas that no process uses")
    size = commands.add_parser("size", help="print the GiB that a cache may take on this node")
    for command in (serve, status, clean, size):
        command.add_argument(
            "--shm-dir", type=Path, default=_SHM_DIR, help=f"shared memory ({_SHM_DIR})"
        )


def _add_serve_arguments(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("data", type=Path, help="folder of the data set")
    serve.add_argument(
        "--memory-gib",
        type=_gib_or_auto,
        metavar="auto|N",
        help="shared memory of this node; auto (the default) takes three quarters of what is free",
    )
    serve.add_argument("--ssd-dir", type=Path, help="folder on a local SSD for the second tier")
    serve.add_argument("--ssd-gib", type=_gib, default=0.0, help="of that SSD (0)")
    serve.add_argument(
        "--fill",
        choices=FILL_MODES,
        default="overlap",
        help="stage: ranks wait until all nodes are full; overlap (the default): they do not",
    )
    serve.add_argument(
        "--transport",
        choices=("mpi", "zmq"),
        help="between nodes; mpi, unless --peers-dir is given",
    )
    serve.add_argument(
        "--peers-dir",
        type=Path,
        help="zmq: folder that all nodes see; the same as CacheConfig(peers_dir=...), whose ranks "
        "make the arenas and say how large they are",
    )
    serve.add_argument("--split", default="train", help="the split that is cached (train)")
    serve.add_argument("--job", help="the ranks' job, where no launcher's variables tell it")
    serve.add_argument(
        "--listen",
        metavar="ADDRESS|INTERFACE",
        help="zmq: where to listen (default: the address that other nodes reach; 127.0.0.1 in a "
        "job of one node)",
    )
    serve.add_argument(
        "--host", help="zmq: name under which other nodes reach this one (where it listens)"
    )
    serve.add_argument(
        "--encrypt",
        action="store_true",
        help="zmq: encrypt the records too, at a third of the rate; keys and requests' secrets "
        "always are",
    )
    serve.add_argument(
        "--metrics-dir", type=Path, help="zmq: folder for this service's counters (.prom)"
    )


def _gib_or_auto(word: str) -> float | None:
    return None if word == "auto" else _gib(word)


def _gib(word: str) -> float:
    try:
        gib = float(word)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is no size; give GiB, 0 or more")
    return gib


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions; returns the exit code."""
    actions = {"serve": _serve, "status": _status, "clean": _clean, "size": _size}
    return actions[args.action](args)


def _serve(args: argparse.Namespace) -> int:
    transport = args.transport or ("mpi" if args.peers_dir is None else "zmq")
    if transport == "mpi":
        return _serve_member(args)
    if args.peers_dir is None:
        raise UsageError("--transport zmq needs --peers-dir, a folder that all nodes see")
    if args.memory_gib is not None or args.ssd_gib:
        raise UsageError(
            "under zmq the ranks make the arenas: give sizes to CacheConfig, not to the service"
        )
    return _serve_arenas(args)


def _serve_member(args: argparse.Namespace) -> int:
    of_zmq = (args.peers_dir, args.host, args.listen, args.encrypt or None, args.metrics_dir)
    if any(option is not None for option in of_zmq):
        raise UsageError(
            "--peers-dir, --host, --listen, --encrypt and --metrics-dir belong to --transport zmq"
        )
    config = CacheConfig(
        memory_gib=args.memory_gib,
        ssd_dir=args.ssd_dir,
        ssd_gib=args.ssd_gib,
        fill=args.fill,
        job=args.job or job_name(),
        shm_dir=args.shm_dir,
    )
    group = open_group(from_env())
    with ending_together(group):
        split = agree(group, lambda: open_dataset(args.data).split(args.split))
        serve_member(config, split, group)
    return 0


def _allow_many_connections() -> None:
    """Each rank of the job may have a connection or more; the usual limit is 1,024 files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve_arenas(args: argparse.Namespace) -> int:
    _allow_many_connections()
    split = open_dataset(args.data).split(args.split)
    is_alone = args.host is None and args.listen is None and num_slurm_nodes() == 1
    config = CacheConfig(
        job=args.job or job_name(),
        shm_dir=args.shm_dir,
        peers_dir=args.peers_dir,
        ssd_dir=args.ssd_dir,
        ssd_gib=1.0 if args.ssd_dir else 0.0,  # how much, the arenas say
        metrics_dir=args.metrics_dir,
        listen=LOOPBACK if is_alone else args.listen,
    )
    with NodeService(
        config,
        cached_split(split),
        lambda: record_reader(split),
        args.host,
        is_encrypted=args.encrypt,
    ) as found:
        known: set[int] = set()
        while True:
            found.look()
            serving = set(found.stats())
            if serving != known:
                nodes = ", ".join(f"node {n}" for n in sorted(serving)) or "nothing yet"
                print(f"serving {nodes} of job {config.job}", flush=True)
                known = serving
            found.write_metrics()
            time.sleep(_LOOK_S)


def _status(args: argparse.Namespace) -> int:
    split = None if args.data is None else cached_split(open_dataset(args.data).split(args.split))

    def look() -> list[dict[str, Any]]:
        views = [v for v in map(look_at, own_arenas(args.shm_dir)) if v is not None]
        return [describe(v, split) for v in views if split is None or v.header.is_of(split)]

    _say_what_is_strange(args.shm_dir)
    if args.json:
        print(json.dumps(look()))
    elif split is None or args.once or not sys.stdout.isatty():
        print(render_status(look(), str(args.shm_dir)))
    else:
        _watch(lambda: render_status(look(), str(args.shm_dir)))
    return 0


def _watch(render: Callable[[], str]) -> None:
    """Redraws the terminal until interrupted, which is how it is meant to end."""
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
    _say_what_is_strange(args.shm_dir)
    return 0


def _say_what_is_strange(shm_dir: Path) -> None:
    strange = strange_arenas(shm_dir)
    if strange:
        print(
            f"{len(strange)} with the name of an arena of yours left alone: not regular files, or "
            f"another user's, such as {str(strange[0])!a}",
            file=sys.stderr,
        )


def _size(args: argparse.Namespace) -> int:
    planned_nbytes, _ = memory_budget(None, args.shm_dir)
    print(f"{math.floor(10 * planned_nbytes / GIB) / 10}")
    return 0
