"""One rank of a job, as a program: what `caching.Rank` starts. Lines of JSON in and out."""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from caching import BATCH, digest_of

import msdata
import msdata.cache.client
import msdata.loader.node_cache
from msdata.cache.config import CacheConfig
from msdata.cache.transport.peer_links import PAUSE_S
from msdata.cache.transport.zmq_transport import ZmqFetcher
from msdata.topology import Topology

WARNINGS: list[str] = []


class WarningList(logging.Handler):
    """Keeps what is logged for the test to see."""

    def emit(self, record: logging.LogRecord) -> None:
        WARNINGS.append(record.getMessage())


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def make_filling_slow(seconds: float) -> None:
    made = msdata.loader.node_cache.record_reader

    def slow(split: Any) -> Any:
        read = made(split)

        def read_slowly(sample: int) -> Any:
            time.sleep(seconds)
            return read(sample)

        return read_slowly

    msdata.loader.node_cache.record_reader = slow


def make_peers_impatient(pause_s: float) -> None:
    """Has nodes that failed be tried again soon; but those that answer late have not failed."""
    msdata.cache.client.ZmqFetcher = partial(ZmqFetcher, pause_s=pause_s, timeout_s=4.0)


def make_services_patient() -> None:
    """A busy machine takes longer than a product should wait; an ended service is seen anyway."""
    patient = partial(msdata.loader.node_cache.LinkFetcher, timeout_s=60.0)
    msdata.loader.node_cache.LinkFetcher = patient


def settled_stats(loader: msdata.Loader, order: dict[str, Any]) -> dict[str, Any]:
    """The counters, once the cache has what it will get."""
    deadline = time.monotonic() + 60
    stats = loader.stats()
    while order.get("settle", True) and time.monotonic() < deadline:
        tier = stats["cache"]["local"]
        if tier["filled"] == tier["slots"]:
            break
        time.sleep(0.02)
        tiers = stats["tiers"]
        stats = {**loader.stats(), "tiers": tiers}
    return stats


def run(order: dict[str, Any]) -> None:
    """Epochs of one job, as they are asked for."""
    fields = order["cache"]
    fields["shm_dir"] = Path(fields["shm_dir"])
    fields["ssd_dir"] = fields["ssd_dir"] and Path(fields["ssd_dir"])
    fields["metrics_dir"] = fields["metrics_dir"] and Path(fields["metrics_dir"])
    fields["peers_dir"] = fields["peers_dir"] and Path(fields["peers_dir"])
    if order.get("fill_s"):
        make_filling_slow(order["fill_s"])
    make_peers_impatient(order.get("pause_s", PAUSE_S))
    with msdata.Loader(
        msdata.open(order["data"]).split("train"),
        order.get("batch_size", BATCH),
        topology=Topology(**order["topology"]),
        cache=CacheConfig(**fields),
        policy=order.get("policy", "shuffle"),
        threads=1,
        prefetch=order.get("prefetch", 3),
    ) as loader:
        if order.get("state"):
            loader.load_state_dict(order["state"])
        while sys.stdin.readline().strip() == "epoch":
            for batch in loader:
                say(digests=digest_of(batch), state=loader.state_dict())
                time.sleep(order.get("step_s", 0))
            say(stats=settled_stats(loader, order), warnings=WARNINGS)


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    make_services_patient()
    logging.getLogger("msdata").addHandler(WarningList(logging.WARNING))
    logging.getLogger("msdata").setLevel(logging.WARNING)
    logging.getLogger("msdata").propagate = False
    while line := sys.stdin.readline():
        WARNINGS.clear()
        run(json.loads(line))
        say(closed=True)


if __name__ == "__main__":
    main()
