"""Counters in Prometheus' text format, for the textfile collector of node_exporter.

Counters run over all epochs, as Prometheus wants them; single epochs are told apart by the gauge
`msdata_epoch`, or looked up in the JSON lines, which have one line an epoch.

Source: Prometheus documentation, "Exposition formats", text format version 0.0.4.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.cache.own_file import is_own_file
from msdata.core.files import write_whole
from msdata.errors import StorageError

COUNTER, GAUGE = "counter", "gauge"
_PREFIX = "msdata"
METRICS_S = 10.0
# Living processes renew their file every few seconds.
_STALE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric with its values.

    Attributes:
        name: without the prefix `msdata_`.
        kind: `COUNTER` or `GAUGE`.
        text: what it is.
        values: labels and value of each time series.
    """

    name: str
    kind: str
    text: str
    values: Sequence[tuple[Mapping[str, Any], float]]


def render(families: Iterable[Family]) -> str:
    """The text that the collector reads.

    Args:
        families: names differ.
    """
    lines = []
    for family in families:
        name = f"{_PREFIX}_{family.name}"
        lines += [f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}"]
        for labels, value in family.values:
            inner = ",".join(f'{key}="{_escape(str(v))}"' for key, v in labels.items())
            lines.append(f"{name}{{{inner}}} {value:.17g}")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def rank_families(report: Mapping[str, Any]) -> list[Family]:
    """The metrics of a rank.

    Args:
        report: what `msdata.cache.reporter` makes: the loader's counters and what they are of.
    """
    labels = {k: report[k] for k in ("run", "split", "node", "rank")}
    totals: Mapping[str, Any] = report["totals"]

    def by_tier(field: str) -> list[tuple[Mapping[str, Any], float]]:
        return [({**labels, "tier": tier}, count[field]) for tier, count in totals.items()]

    return [
        Family(
            name="tier_samples_total",
            kind=COUNTER,
            text="Samples read, by the tier that had them.",
            values=by_tier("samples"),
        ),
        Family(
            name="tier_bytes_total",
            kind=COUNTER,
            text="Bytes of those samples.",
            values=by_tier("bytes"),
        ),
        Family(
            name="tier_seconds_total",
            kind=COUNTER,
            text="Seconds that reading threads spent on them, waiting included.",
            values=by_tier("seconds"),
        ),
        Family(
            name="batch_wait_seconds_total",
            kind=COUNTER,
            text="Seconds that training waited for batches.",
            values=[(labels, report["total_wait_s"])],
        ),
        *_peer_families(report, labels),
        Family(name="epoch", kind=GAUGE, text="Epoch.", values=[(labels, report["epoch"])]),
        Family(
            name="epoch_steps",
            kind=GAUGE,
            text="Steps done of the epoch.",
            values=[(labels, report["steps"])],
        ),
        *(slot_families(report["cache"], labels) if report["is_first_of_node"] else ()),
        _written_at(labels),
    ]


def _peer_families(report: Mapping[str, Any], labels: Mapping[str, Any]) -> list[Family]:
    peers = report["cache"].get("peers")
    if peers is None:
        return []
    return [
        Family(
            name="peer_failures_total",
            kind=COUNTER,
            text="Times that another node did not answer.",
            values=[(labels, peers["failures"])],
        )
    ]


def slot_families(
    cache: Mapping[str, Any], labels: Mapping[str, Any], prefix: str = "cache"
) -> list[Family]:
    """What a node's tiers hold; the same for all its processes, so one of them says it.

    Args:
        cache: `cache` of `CacheClient.stats`.
        labels: whose; a rank is left out.
        prefix: of the metrics' names: a service has its own.
    """
    of_node = {k: v for k, v in labels.items() if k != "rank"}
    fields = {
        "slots": (GAUGE, "slots", "Samples that a tier has room for."),
        "slots_filled": (GAUGE, "filled", "Samples that a tier holds."),
        "corrupt_total": (COUNTER, "corrupt", "Records that this process found altered."),
    }
    tiers = [t for t in ("local", "ssd") if t in cache]
    return [
        Family(
            name=f"{prefix}_{name}",
            kind=kind,
            text=text,
            values=[({**of_node, "tier": t}, cache[t][field]) for t in tiers],
        )
        for name, (kind, field, text) in fields.items()
    ]


def service_families(
    cache: Mapping[str, Any], served: Mapping[str, float], labels: Mapping[str, Any]
) -> list[Family]:
    """The metrics of one node's service.

    Args:
        cache: `cache` of `CacheClient.stats`.
        served: `samples` and `bytes` given to other nodes.
        labels: `run`, `split`, `node`.
    """
    return [
        Family(
            name="served_samples_total",
            kind=COUNTER,
            text="Samples given to other nodes.",
            values=[(labels, served["samples"])],
        ),
        Family(
            name="served_bytes_total",
            kind=COUNTER,
            text="Bytes given to other nodes.",
            values=[(labels, served["bytes"])],
        ),
        *slot_families(cache, labels, "service_cache"),
        _written_at(labels),
    ]


def _written_at(labels: Mapping[str, Any]) -> Family:
    return Family(
        name="written_timestamp_seconds",
        kind=GAUGE,
        text="When these numbers were written, in Unix time.",
        values=[(labels, time.time())],
    )


def write_metrics(path: Path, families: Iterable[Family]) -> None:
    """Writes a file for the collector, whole or not at all.

    Args:
        path: ends in `.prom`.
        families: what it says.

    Raises:
        StorageError: the file system refused, or the name is taken by what is not this user's.
    """
    if os.path.lexists(path) and not is_own_file(path):
        raise StorageError(f"cannot write {path}: it is a link, or another user's; remove it")
    write_whole(path, render(families).encode())


def remove_metrics(path: Path) -> None:
    """Removes a file of `write_metrics`, unless it is another user's by now."""
    with suppress(OSError):
        if is_own_file(path):
            path.unlink()


def remove_stale_metrics(folder: Path) -> None:
    """Removes files of this user's killed processes: the collector would show them for ever.

    Args:
        folder: of the files.
    """
    oldest_s = time.time() - _STALE_S
    for path in folder.glob(f"{_PREFIX}-*.prom"):
        with suppress(OSError):
            if path.lstat().st_mtime < oldest_s:
                remove_metrics(path)
