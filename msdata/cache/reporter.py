"""Reports a rank's progress in its node's arena, as JSON lines, and for Prometheus.

A separate thread writes, so a slow disk never delays a batch. It holds the loader weakly, so an
unreferenced loader is freed and its thread ends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msdata.cache.arena import word
from msdata.cache.client import CacheClient
from msdata.cache.metrics import METRICS_S, rank_families, remove_metrics, write_metrics
from msdata.cache.own_file import make_folder, open_own
from msdata.cache.status import RUN_FIELDS
from msdata.cache.tier import LOG
from msdata.errors import MsdataError

ROW_S = 1.0
_CLOSE_S = 5.0
# Fields of a report that `msdata cache status` shows or computes the forecast from.
_ROW_FIELDS = (
    *RUN_FIELDS,
    *("kind", "rank", "node", "is_weighted", "forecast_hit_share", "steps", "num_steps"),
    *("samples", "seconds", "wait_s", "tiers", "written_s"),
)

Report = dict[str, Any]


class Reporter:
    """Writes a rank's reports until it is closed.

    Args:
        client: the rank's cache.
        describe: returns the loader's counters and settings; None once the loader is gone.
        forecast: computes the hits of a run that draws by weights, which only its ranks know, from
            a report and its node; None for other runs.
    """

    def __init__(
        self,
        client: CacheClient,
        describe: Callable[[], Report | None],
        forecast: Callable[[Report, int], float | None] | None = None,
    ) -> None:
        self._client = client
        self._describe = describe
        self._forecast = forecast
        # The last forecast, and its epoch and position.
        self._forecast_of: tuple[Any, float | None] = (None, None)
        self._folder = client.config.metrics_dir
        self._names = {"kind": "rank", "run": client.config.job, "split": client.split.name}
        self._lines: deque[Report] = deque()
        self._is_epoch_open = False
        self._has_failed = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="msdata-report", daemon=True)
        self._thread.start()

    def start_epoch(self) -> None:
        """Starts an epoch; call it before the counters are reset."""
        self.end_epoch(is_complete=False)
        self._is_epoch_open = True

    def end_epoch(self, *, is_complete: bool) -> None:
        """Ends the epoch and writes its counters as a line.

        Args:
            is_complete: whether the loader handed out the last batch.
        """
        report = self._report() if self._is_epoch_open else None
        self._is_epoch_open = False
        if report is not None and report["steps"] and self._folder is not None:
            self._lines.append({**report, "is_complete": is_complete})
            self._wake.set()

    def request_stop(self) -> None:
        """Asks the thread to stop, without waiting."""
        self._stop.set()
        self._wake.set()

    def close(self) -> bool:
        """Writes the remaining lines and stops the thread.

        Returns:
            Whether the thread has ended; False if it hangs in a file system.
        """
        self.end_epoch(is_complete=False)
        self.request_stop()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            return False
        # The thread may have stopped before this epoch's line was queued.
        self._write_lines()
        return True

    def _report(self) -> Report | None:
        described = self._describe()
        if described is None:
            return None
        return {**self._names, "written_s": time.time(), **described}

    def _run(self) -> None:
        metrics_due_s, path = 0.0, None
        while True:
            is_last = self._stop.is_set()
            self._write_lines()
            report = self._report()
            try:
                if report is not None:
                    report["forecast_hit_share"] = self._forecast_hits(report)
                    self._client.row.write({k: report[k] for k in _ROW_FIELDS})
                if self._folder is not None and report is not None and not is_last:
                    path = path or _path(self._folder, report, ".prom")
                    if time.monotonic() >= metrics_due_s:
                        metrics_due_s = time.monotonic() + METRICS_S
                        write_metrics(path, rank_families(report))
            except (MsdataError, OSError) as error:
                self._fail(error)
            if is_last or report is None:
                break
            self._wake.wait(ROW_S)
            self._wake.clear()
        if path is not None:
            remove_metrics(path)

    def _forecast_hits(self, report: Report) -> float | None:
        """Computed once per epoch and node, in this thread: batches do not wait for it."""
        if self._forecast is None or not report["is_first_of_node"]:
            return None
        run = (report["epoch"], report["first_position"], report["has_peers"])
        if self._forecast_of[0] != run:
            self._forecast_of = (run, self._forecast(report, report["node"]))
        return self._forecast_of[1]

    def _fail(self, error: Exception) -> None:
        if not self._has_failed:
            LOG.warning("cannot write counters: %s", error)
        self._has_failed = True

    def _write_lines(self) -> None:
        while self._lines and self._folder is not None:
            line = self._lines.popleft()
            try:
                make_folder(self._folder)
                path = _path(self._folder, line, ".jsonl")
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                with os.fdopen(open_own(path, flags, is_private=False), "ab") as file:
                    file.write(json.dumps(line).encode() + b"\n")
            except OSError as error:
                self._fail(error)


def _path(folder: Path, report: Report, suffix: str) -> Path:
    names = f"{word(str(report['run']))}-{word(report['split'])}"
    return folder / f"msdata-{names}-rank{report['rank']}{suffix}"
