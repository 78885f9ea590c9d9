"""Where samples come from: pickled dicts, upstream's blocks, mock objects."""

from __future__ import annotations

from pathlib import Path

# The survey files that are shipped; named here for those who only list them.
SURVEYS = Path(__file__).parent / "surveys"
