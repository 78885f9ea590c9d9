"""E(B-V) of positions, from a HEALPix map or from somebody's Python function."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.catalog.build.spec import DustTask
from msdata.catalog.table import read_healpix
from msdata.errors import UsageError, needing

_Float = NDArray[np.float64]

# What HEALPix files have for pixels that were not seen: -1.6375e30.
_UNSEEN_BELOW = -1e30
_ROWS_PER_PIECE = 1 << 19


def reddening(task: DustTask, ra_deg: _Float, dec_deg: _Float) -> NDArray[np.float32]:
    """E(B-V) at positions.

    Args:
        task: kind "healpix" or "call".
        ra_deg: float64 (n,), ICRS.
        dec_deg: float64 (n,).

    Returns:
        float32 (n,), magnitudes; NaN where the map has none.

    Raises:
        UsageError: the map or function does not exist, or gives something else.
        DataError: the map is broken.
    """
    if task.kind == "healpix":
        return _of_healpix(task, ra_deg, dec_deg)
    query = _load(task)
    found = np.empty(len(ra_deg), np.float32)
    for start in range(0, len(ra_deg), _ROWS_PER_PIECE):
        rows = slice(start, start + _ROWS_PER_PIECE)
        found[rows] = _ask(task, query, ra_deg[rows], dec_deg[rows])
    return found


def _of_healpix(task: DustTask, ra_deg: _Float, dec_deg: _Float) -> NDArray[np.float32]:
    with needing("a HEALPix map needs astropy-healpix", "catalog"):
        from astropy.coordinates import SkyCoord
        from astropy_healpix import HEALPix
    values, cards = read_healpix(Path(task.value), task.field)
    nside = math.isqrt(len(values) // 12)
    if 12 * nside * nside != len(values) or nside < 1 or nside & (nside - 1):
        raise UsageError(
            f"map {task.value} must be of the whole sky, with 12 nside^2 pixels, got "
            f"{len(values):,}"
        )
    order = cards["ORDERING"]
    if order not in ("RING", "NESTED", "NEST"):
        raise UsageError(f"map {task.value} does not say whether it is RING or NESTED: {order!r}")
    frame = task.frame or (cards["COORDSYS"] or "G")[0]
    if frame not in ("G", "C"):
        raise UsageError(f"map {task.value} is in frame {frame!r}; say frame = 'G' or 'C'")
    sky = SkyCoord(ra_deg, dec_deg, unit="deg")
    at = (sky.galactic if frame == "G" else sky).spherical
    grid = HEALPix(nside, order="ring" if order == "RING" else "nested")
    pixels = grid.lonlat_to_healpix(at.lon, at.lat)
    found = np.array(values[pixels], np.float32)
    found[found < _UNSEEN_BELOW] = np.nan
    return found


def _load(task: DustTask) -> Any:
    """The function; of a class, such as those of the package dustmaps, an object."""
    module, colon, name = task.value.partition(":")
    if not (module and colon and name):
        raise UsageError(f"ebv.{task.name}: call = {task.value!r} is not of the form module:name")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UsageError(f"ebv.{task.name}: module {module!r} not found ({error})") from error
    except AttributeError:
        raise UsageError(f"ebv.{task.name}: module {module!r} has no {name!r}") from None
    return found() if isinstance(found, type) else found


def _ask(task: DustTask, query: Any, ra_deg: _Float, dec_deg: _Float) -> NDArray[np.float32]:
    """Calls `query.query_equ` (dustmaps), else `query`, with degrees."""
    call = getattr(query, "query_equ", query)
    found = np.asarray(call(ra_deg, dec_deg), np.float32)
    if found.shape != ra_deg.shape:
        raise UsageError(
            f"ebv.{task.name}: {task.value} gives shape {found.shape} for {len(ra_deg)} positions"
        )
    return found
