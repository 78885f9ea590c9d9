"""Counters in Prometheus' text format, for the textfile collector of node_exporter.

Counters run over all epochs, as Prometheus expects; the gauge `msdata_epoch` separates epochs, and
the JSON lines have one line per epoch.

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

from msdata.cache.own_file import is_own_file, make_folder
from msdata.core.files import write_whole
from msdata.errors import StorageError

_PREFIX = "msdata"
METRICS_S = 10.0
# Living processes renew their file every few seconds.
_STALE_S = 600.0


@dataclass(frozen=True)
class Family:
    """One metric with its values.

    Attributes:
        name: name without the prefix `msdata_`; a counter's ends in `_total`, a gauge's does not.
        text: description.
        values: labels and value of each time series.
    """

    name: str
    text: str
    values: Sequence[tuple[Mapping[str, Any], float]]


def render(families: Iterable[Family]) -> str:
    """The text that the collector reads.

    Args:
        families: metrics with different names.
    """
    lines = []
    for family in families:
        name = f"{_PREFIX}_{family.name}"
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {family.text}", f"# TYPE {name} {kind}"]
        for labels, value in family.values:
            inner = ",".join(f'{key}="{_escape(str(v))}"' for key, v in labels.items())
            lines.append(f"{name}{{{inner}}} {value:.17g}")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def rank_families(report: Mapping[str, Any]) -> list[Family]:
    """The metrics of a rank.

    Args:
        report: a report of `msdata.cache.reporter`.
    """
    labels = {k: report[k] for k in ("run", "split", "node", "rank")}
    found = []
    for field, text in (
        ("samples", "Samples read, by the tier that had them."),
        ("bytes", "Bytes of those samples."),
        ("seconds", "Seconds of the reading threads, with waiting."),
    ):
        values = [({**labels, "tier": t}, c[field]) for t, c in report["totals"].items()]
        found.append(Family(f"tier_{field}_total", text, values))
    waited_s = report["total_wait_s"]
    rows = [("batch_wait_seconds_total", "Seconds that training waited for batches.", waited_s)]
    if "peers" in report["cache"]:
        failures = report["cache"]["peers"]["failures"]
        rows.append(("peer_failures_total", "Times that another node did not answer.", failures))
    rows.append(("epoch", "Epoch.", report["epoch"]))
    rows.append(("epoch_steps", "Steps done in the epoch.", report["steps"]))
    found += [Family(name, text, [(labels, value)]) for name, text, value in rows]
    if report["is_first_of_node"]:
        found += slot_families(report["cache"], labels)
    return [*found, _written_at(labels)]


def slot_families(
    cache: Mapping[str, Any], labels: Mapping[str, Any], prefix: str = "cache"
) -> list[Family]:
    """The contents of a node's tiers; equal for all its processes, so only one reports them.

    Args:
        cache: `cache` of `CacheClient.stats`.
        labels: the process's labels; a rank is dropped.
        prefix: prefix of the metrics' names: a service has its own.
    """
    of_node = {k: v for k, v in labels.items() if k != "rank"}
    fields = {
        "slots": ("slots", "Samples that a tier has room for."),
        "slots_filled": ("filled", "Samples that a tier holds."),
        "corrupt_total": ("corrupt", "Records that this process found corrupt."),
    }
    tiers = [t for t in ("local", "ssd") if t in cache]
    return [
        Family(f"{prefix}_{name}", text, [({**of_node, "tier": t}, cache[t][key]) for t in tiers])
        for name, (key, text) in fields.items()
    ]


def service_families(
    cache: Mapping[str, Any], served: Mapping[str, float], labels: Mapping[str, Any]
) -> list[Family]:
    """The metrics of one node's service.

    Args:
        cache: `cache` of `CacheClient.stats`.
        served: `samples` and `bytes` sent to other nodes.
        labels: `run`, `split`, `node`.
    """
    sent = [
        Family(f"served_{k}_total", f"{k.title()} sent to other nodes.", [(labels, n)])
        for k, n in served.items()
    ]
    return [*sent, *slot_families(cache, labels, "service_cache"), _written_at(labels)]


def _written_at(labels: Mapping[str, Any]) -> Family:
    values = [(labels, time.time())]
    return Family("written_timestamp_seconds", "Time of writing, in Unix time.", values)


def write_metrics(path: Path, families: Iterable[Family]) -> None:
    """Writes a file for the collector, whole or not at all, and removes stale ones beside it.

    Args:
        path: the file, ending in `.prom`; its folder is made if missing.
        families: its metrics.

    Raises:
        StorageError: the file system refused, or something that this user does not own has the
            name.
        OSError: the file system refused the folder.
    """
    make_folder(path.parent)
    remove_stale_metrics(path.parent)
    if os.path.lexists(path) and not is_own_file(path):
        raise StorageError(f"cannot write {path}: it is a link, or another user's; remove it")
    write_whole(path, render(families).encode())


def remove_metrics(path: Path) -> None:
    """Removes a file of `write_metrics`, unless another user owns it by now."""
    with suppress(OSError):
        if is_own_file(path):
            path.unlink()


def remove_stale_metrics(folder: Path) -> None:
    """Removes files of this user's killed processes, which the collector would show forever.

    Args:
        folder: the folder of the files.
    """
    oldest_s = time.time() - _STALE_S
    for path in folder.glob(f"{_PREFIX}-*.prom"):
        with suppress(OSError):
            if path.lstat().st_mtime < oldest_s:
                remove_metrics(path)
