"""How many objects of other splits show the same sky as objects of the training split.

Cutouts of neighbors share pixels, so a network has seen part of such a test object. Axes: N
objects, M others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.index import IndexFile
from msdata.dataset.manifest import Manifest

Floats = NDArray[np.float64]

_TRAIN = "train"
# Objects whose 27 cells are searched at once.
_PIECE = 50_000
_ARCSEC = 3600.0


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Objects of a split whose cutouts of an array overlap with training ones.

    Attributes:
        split: the split.
        array: the array.
        side_arcsec: its longer side: objects nearer than that count.
        num_objects: objects with a position that have a training object so near.
        num_positions: objects of the split with a position.
    """

    split: str
    array: str
    side_arcsec: float
    num_objects: int
    num_positions: int


def find_overlaps(index: IndexFile, manifest: Manifest) -> tuple[Overlap, ...]:
    """Counts objects of each other split that are nearer to a training object than a cutout's side.

    Args:
        index: with columns `ra` and `dec` in degrees.
        manifest: of the same data set.

    Returns:
        A row per split and array of known pixel scale; empty without positions, without split
        "train" or without another split.
    """
    sides = {
        array.name: max(array.shape[-2:]) * array.pixel_scale_arcsec
        for array in manifest.schema.arrays
        if array.bands and len(array.shape) == 3 and array.pixel_scale_arcsec
    }
    others = [name for name in manifest.splits if name != _TRAIN]
    columns = index.column_names
    if (
        not sides
        or not others
        or _TRAIN not in manifest.splits
        or not {"ra", "dec"} <= set(columns)
    ):
        return ()
    train = _positions(index, _TRAIN)
    found = []
    for split in others:
        positions = _positions(index, split)
        nearest_N = nearest_separation(positions, train, max(sides.values()) / _ARCSEC)
        for array, side in sides.items():
            found.append(
                Overlap(
                    split=split,
                    array=array,
                    side_arcsec=float(side),
                    num_objects=int((nearest_N * _ARCSEC < side).sum()),
                    num_positions=len(positions),
                )
            )
    return tuple(found)


def _positions(index: IndexFile, split: str) -> Floats:
    """Possible positions of a split, float64 (N, 2) in degrees; none for columns of text."""
    import pyarrow as pa

    kinds = [index.read(split, [name]).column(0).type for name in ("ra", "dec")]
    if not all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in kinds):
        return np.zeros((0, 2))
    ra_N, dec_N = (index.read_numbers(split, name, np.float64) for name in ("ra", "dec"))
    is_possible_N = np.isfinite(ra_N) & (np.abs(dec_N) <= 90)
    return np.asarray(np.stack([ra_N, dec_N], axis=1)[is_possible_N], np.float64)


def nearest_separation(positions_N2: Floats, others_M2: Floats, within_deg: float) -> Floats:
    """Angle to the nearest of others, float64 (N,) in degrees; infinite where none is near.

    Args:
        positions_N2: float64 (N, 2), right ascension and declination in degrees.
        others_M2: float64 (M, 2).
        within_deg: what counts as near, above 0.
    """
    # Unit vectors and chords: nothing is special at the poles or at right ascension 0.
    chord = 2 * np.sin(np.radians(min(within_deg, 180.0)) / 2)
    points_N3, others_M3 = unit_vectors(positions_N2), unit_vectors(others_M2)
    num_cells = int(2 / chord) + 3
    key_M = _keys(_cells(others_M3, chord), num_cells)
    order_M = np.argsort(key_M, kind="stable")
    key_M, others_M3 = key_M[order_M], others_M3[order_M]
    found = [
        _nearest_chord(points_N3[start : start + _PIECE], others_M3, key_M, chord, num_cells)
        for start in range(0, len(points_N3), _PIECE)
    ]
    chord_N = np.concatenate([np.zeros(0), *found])
    is_near_N = chord_N <= chord
    angle_N = 2 * np.degrees(np.arcsin(np.minimum(np.where(is_near_N, chord_N, 0) / 2, 1)))
    return np.asarray(np.where(is_near_N, angle_N, np.inf), np.float64)


def unit_vectors(positions_N2: Floats) -> Floats:
    """Directions of right ascension and declination in degrees, float64 (N, 3)."""
    ra_N, dec_N = np.radians(positions_N2).T
    return np.stack([np.cos(dec_N) * np.cos(ra_N), np.cos(dec_N) * np.sin(ra_N), np.sin(dec_N)], 1)


def _cells(points_N3: Floats, chord: float) -> NDArray[np.int64]:
    """Cubes of a chord's side, numbered from 1, int64 (N, 3)."""
    return ((points_N3 + 1) / chord).astype(np.int64) + 1


def _keys(cells_N3: NDArray[np.int64], num_cells: int) -> NDArray[np.int64]:
    x_N, y_N, z_N = cells_N3.T
    return np.asarray((x_N * num_cells + y_N) * num_cells + z_N, np.int64)


def _nearest_chord(
    points_N3: Floats,
    others_M3: Floats,
    key_M: NDArray[np.int64],
    chord: float,
    num_cells: int,
) -> Floats:
    """Chord to the nearest of others in the cubes around, float64 (N,)."""
    best_N = np.full(len(points_N3), np.inf)
    cells_N3 = _cells(points_N3, chord)
    for step in np.ndindex(3, 3, 3):
        key_N = _keys(cells_N3 + (np.array(step) - 1), num_cells)
        low_N = np.searchsorted(key_M, key_N, side="left")
        count_N = np.searchsorted(key_M, key_N, side="right") - low_N
        row_P = np.repeat(np.arange(len(points_N3)), count_N)
        start_N = np.cumsum(count_N) - count_N
        place_P = np.arange(len(row_P)) - np.repeat(start_N, count_N) + low_N[row_P]
        away_P = np.linalg.norm(points_N3[row_P] - others_M3[place_P], axis=1)
        np.minimum.at(best_N, row_P, away_P)
    return best_N
