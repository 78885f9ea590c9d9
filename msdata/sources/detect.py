"""Chooses the source for a folder the user named."""

from __future__ import annotations

import difflib
from pathlib import Path

from msdata.errors import UsageError
from msdata.sources.blocks import BlockFiles, find_blocks
from msdata.sources.pickles import PickleTree
from msdata.sources.source import Source


def detect_source(root: Path) -> Source:
    """Picks `BlockFiles` where upstream's block layout is there, else `PickleTree`.

    Args:
        root: folder with block files or object files.

    Returns:
        The source, not yet scanned.

    Raises:
        UsageError: the path is missing, or no folder.
    """
    if not root.exists():
        raise UsageError(f"{root} does not exist{_suggestion(root)}")
    if not root.is_dir():
        raise UsageError(f"{root} is a file; give the folder that holds the objects")
    if find_blocks(root) is not None:
        return BlockFiles(root)
    return PickleTree(root)


def _suggestion(path: Path) -> str:
    """Names the sibling that a typo was probably meant to be."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return f": there is no {parent} either; check the path"
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else "; check the path"
