"""A hook of MkDocs: the report with its charts, from the committed results, as a page of the docs.

It stands alone because MkDocs loads it by its path; see `hooks` in mkdocs.yml.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = "report.html"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to the site's files."""
    from mkdocs.structure.files import File

    # MkDocs runs from its own script, so the repository is not on the path.
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.harness import RESULTS
        from benchmarks.report import history_table, page, read_results
    finally:
        sys.path.pop(0)
    content = page(read_results(RESULTS), history_table(RESULTS))
    files.append(File.generated(config, PAGE, content=content))
    return files
