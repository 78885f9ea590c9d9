"""`msdata cache`: serve a node's cache to other nodes, show caches, remove what dead jobs left."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from msdata.cache.arena import own_arenas
from msdata.cache.config import GIB, CacheConfig
from msdata.cache.service import NodeService
from msdata.cache.shared_file import is_used, remove_if_unused
from msdata.cache.slot_file import SlotFile, read_header
from msdata.dataset import open_dataset
from msdata.node_cache import cached_split, record_reader
from msdata.topology import job_name

WHEN_INTERRUPTED = "arenas that ranks still use stay with them"
_LOOK_S = 0.5
_SHM_DIR = Path("/dev/shm")
_BAR_WIDTH = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata cache`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = commands.add_parser(
        "serve",
        help="one process a node beside the ranks: keeps their arena, fills it, serves it to peers",
    )
    serve.add_argument("data", type=Path, help="folder of the data set")
    serve.add_argument(
        "--peers-dir",
        type=Path,
        required=True,
        help="folder that all nodes see; the same as CacheConfig(peers_dir=...)",
    )
    serve.add_argument("--split", default="train", help="the split that is cached (train)")
    serve.add_argument("--ssd-dir", type=Path, help="the ranks' CacheConfig(ssd_dir=...)")
    serve.add_argument("--job", help="the ranks' job, where no launcher's variables tell it")
    serve.add_argument("--host", help="name under which other nodes reach this one")
    status = commands.add_parser("status", help="show your arenas on this node")
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    clean = commands.add_parser("clean", help="remove your arenas that no process uses")
    for command in (serve, status, clean):
        command.add_argument(
            "--shm-dir", type=Path, default=_SHM_DIR, help=f"shared memory ({_SHM_DIR})"
        )


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions; returns the exit code."""
    actions = {"serve": _serve, "status": _status, "clean": _clean}
    return actions[args.action](args)


def _serve(args: argparse.Namespace) -> int:
    split = open_dataset(args.data).split(args.split)
    config = CacheConfig(
        job=args.job or job_name(),
        shm_dir=args.shm_dir,
        peers_dir=args.peers_dir,
        ssd_dir=args.ssd_dir,
        ssd_gib=1.0 if args.ssd_dir else 0.0,  # how much, the arenas say
    )
    with NodeService(config, cached_split(split), lambda: record_reader(split), args.host) as found:
        known: set[int] = set()
        while True:
            found.look()
            serving = set(found.stats())
            if serving != known:
                nodes = ", ".join(f"node {n}" for n in sorted(serving)) or "nothing yet"
                print(f"serving {nodes} of job {config.job}", flush=True)
                known = serving
            time.sleep(_LOOK_S)


def _status(args: argparse.Namespace) -> int:
    found = [s for s in map(arena_status, own_arenas(args.shm_dir)) if s is not None]
    if args.json:
        print(json.dumps(found))
    elif not found:
        print(f"no arenas of yours in {args.shm_dir}")
    for status in [] if args.json else found:
        print(status_line(status))
    return 0


def arena_status(path: Path) -> dict[str, Any] | None:
    """What an arena holds.

    Args:
        path: the arena.

    Returns:
        `name`, `split`, `node`, `slots`, `filled`, `bytes` of the filled ones, `is_used`; None
        where it has just gone, or is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        header = read_header(fd)
        if header is None:
            return None
        slots = SlotFile(fd, is_mapped=False)
        num_slots, num_ready = slots.num_slots, slots.num_ready
        slots.close()
    except OSError:
        return None
    finally:
        os.close(fd)
    return {
        "name": path.name,
        "split": header.split,
        "node": header.node,
        "slots": num_slots,
        "filled": num_ready,
        "bytes": num_ready * header.sample_nbytes,
        "is_used": is_used(path),
    }


def status_line(status: dict[str, Any]) -> str:
    """An arena for people.

    Args:
        status: what `arena_status` gives.
    """
    share = status["filled"] / max(1, status["slots"])
    full = round(share * _BAR_WIDTH)
    use = "in use" if status["is_used"] else "left by a dead job"
    held = f"{status['filled']:,} of {status['slots']:,} samples, {status['bytes'] / GIB:.1f} GiB"
    return (
        f"{status['name']}  [{'#' * full}{'.' * (_BAR_WIDTH - full)}] {share:4.0%}  {held}, {use}"
    )


def _clean(args: argparse.Namespace) -> int:
    for path in own_arenas(args.shm_dir):
        if remove_if_unused(path):
            print(f"removed {path}")
    return 0
