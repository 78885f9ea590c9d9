"""What a question has found so far, in lines of JSON, so that the same command resumes it.

It stands alone: it knows no question, and any may keep one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Findings by name, kept as they come; one that was cut off by a kill is left out.

    Args:
        path: the file, below a folder that is created if missing.
        about: what the findings are of, JSON; a file about anything else is started afresh.

    Attributes:
        was_found: whether the file held findings about the same.
        was_other: whether it held findings about something else, which are dropped.
        spent_s: seconds that all findings took, those of earlier processes included.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._found = path, dict[str, Any]()
        self.spent_s = 0.0
        head = json.dumps(about)
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        self.was_found = len(lines) > 2 and lines[0] == head
        self.was_other = len(lines) > 2 and not self.was_found
        # What follows the last end of line was not written whole.
        kept = lines[1:-1] if self.was_found else []
        for line in kept:
            self._take(json.loads(line))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [head, *kept]), encoding="utf-8")

    def _take(self, entry: Mapping[str, Any]) -> None:
        self._found[entry["key"]] = entry["value"]
        self.spent_s += entry["seconds"]

    def get(self, key: str) -> Any:
        """What was found by that name; None where nothing was."""
        return self._found.get(key)

    def find(self, key: str, finder: Callable[[], Any]) -> Any:
        """Has something found and keeps it, in place of what was found before; returns it."""
        started_s = time.perf_counter()
        value = finder()
        entry = {"key": key, "value": value, "seconds": time.perf_counter() - started_s}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)
        return value
