"""A progress line: redrawn on a terminal, printed every ten seconds into a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from msdata.core.terminal import raw, shown_line
from msdata.core.text import duration_text, rate_text

_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 10.0
_BAR_WIDTH = 24


class ProgressLine:
    """Shows the progress of long work on stderr; stdout is for results.

    Args:
        label: name of the work.
        total: number of samples.
        is_quiet: show nothing.
        stream: the output stream; None means stderr.
    """

    def __init__(
        self, label: str, total: int, *, is_quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._label = label
        self._total = total
        # The line is redrawn with a control sequence.
        self._stream = raw(sys.stderr if stream is None else stream)
        self._is_quiet = is_quiet
        self._is_terminal = self._stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._is_terminal else _LOG_INTERVAL_S
        self._start_s = self._shown_s = time.monotonic()
        self._has_shown = False

    def update(self, num_samples: int, nbytes: int, remark: str = "") -> None:
        """Shows the state if enough time has passed since the last update.

        Args:
            num_samples: samples done so far.
            nbytes: bytes done so far.
            remark: text at the end of the line.
        """
        now = time.monotonic()
        if now - self._shown_s >= self._interval_s:
            self._shown_s = now
            self._show(num_samples, nbytes, remark)

    def close(self, num_samples: int, nbytes: int, remark: str = "") -> None:
        """Shows the last state and ends the line."""
        if self._is_terminal or self._has_shown:
            self._show(num_samples, nbytes, remark)
        if self._is_terminal and not self._is_quiet:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, num_samples: int, nbytes: int, remark: str) -> None:
        if self._is_quiet:
            return
        self._has_shown = True
        text = progress_text(
            self._label, (num_samples, self._total), nbytes, time.monotonic() - self._start_s
        )
        text = shown_line(f"{text}  {remark}" if remark else text)
        self._stream.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        self._stream.flush()


def progress_text(label: str, done_of: tuple[int, int], nbytes: int, elapsed_s: float) -> str:
    """Formats the line: bar, counts, samples/s, bytes/s and the time left.

    Args:
        label: name of the work.
        done_of: samples done, and the total.
        nbytes: bytes done.
        elapsed_s: seconds since the start.
    """
    done, total = done_of
    share = done / total if total else 1.0
    filled = int(share * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    elapsed = max(elapsed_s, 1e-6)
    rate = done / elapsed
    left = duration_text((total - done) / rate) if rate else "?"
    return (
        f"{label} [{bar}] {done:,}/{total:,}  {rate:,.0f} samples/s  "
        f"{rate_text(nbytes / elapsed)}  {left} left"
    )
