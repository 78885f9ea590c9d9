"""What a sample is made of: its survey arrays, with bands, pixel scale, unit and zero-points.

`MANTIS_SHRIMP` is the named default. Any other dict of fixed-shape numeric arrays is described by
`infer_schema`; such arrays have no bands or units, only a name, a shape and a dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

Array = NDArray[Any]
Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One array of a sample.

    Attributes:
        name: key in the sample's dict, also the member's name in a shard.
        shape: fixed shape; (bands, height, width) where `bands` is given.
        dtype: little-endian NumPy dtype string, such as "<f4".
        bands: names of the entries of the first axis, in order; empty where unknown.
        pixel_scale_arcsec: pixel size in arc seconds, None where unknown.
        unit: unit of the pixel values, such as "count/s".
        zero_points_ab: AB magnitude of one unit of flux, one a band; None where it differs from
            object to object.
        may_have_nan: NaN pixels are expected (cores of bright stars) and mended by inpainting.
        zero_is_no_coverage: a band of exact zeros means the survey never looked there.
        casts_to_dtype: other numeric dtypes are rounded to `dtype`; else only casts that keep
            every value are taken.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "<f4"
    bands: tuple[str, ...] = ()
    pixel_scale_arcsec: float | None = None
    unit: str = ""
    zero_points_ab: tuple[float, ...] | None = None
    may_have_nan: bool = False
    zero_is_no_coverage: bool = False
    casts_to_dtype: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.isidentifier():
            raise UsageError(
                f"array name {self.name!r} cannot name a shard member; use letters, digits and _"
            )
        if any(n < 1 for n in self.shape):
            raise UsageError(f"array {self.name!r} has an empty shape {self.shape}")
        if self.bands and (not self.shape or len(self.bands) != self.shape[0]):
            raise UsageError(
                f"array {self.name!r}: {len(self.bands)} bands for shape {self.shape}; "
                "the first axis is the band"
            )
        if np.dtype(self.dtype).kind not in "biufc" or self.dtype.startswith(">"):
            raise UsageError(
                f"array {self.name!r}: dtype {self.dtype!r} is not little-endian numeric"
            )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as NumPy knows it."""
        return np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.numpy_dtype.itemsize

    @property
    def num_bands(self) -> int:
        """Length of the band axis; 1 for an array without bands."""
        return self.shape[0] if self.bands else 1

    @property
    def has_bands_last(self) -> bool:
        """Whether an array without names of bands has the shape of (height, width, bands).

        So it is where the last side is the shortest, and the others are equal, four times as long,
        or those of a picture of three or four colors.
        """
        if self.bands or len(self.shape) != 3:
            return False
        height, width, count = self.shape
        side = min(height, width)
        is_picture = count in (3, 4) and side > 4
        return count < side and (height == width or 4 * count <= side or is_picture)

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `dataset.json`."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "bands": list(self.bands),
            "pixel_scale_arcsec": self.pixel_scale_arcsec,
            "unit": self.unit,
            "zero_points_ab": None if self.zero_points_ab is None else list(self.zero_points_ab),
            "may_have_nan": self.may_have_nan,
            "zero_is_no_coverage": self.zero_is_no_coverage,
            "casts_to_dtype": self.casts_to_dtype,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Survey:
        """The inverse of `to_json`."""
        zero_points = fields["zero_points_ab"]
        return cls(
            name=fields["name"],
            shape=tuple(fields["shape"]),
            dtype=fields["dtype"],
            bands=tuple(fields["bands"]),
            pixel_scale_arcsec=fields["pixel_scale_arcsec"],
            unit=fields["unit"],
            zero_points_ab=None if zero_points is None else tuple(zero_points),
            may_have_nan=fields["may_have_nan"],
            zero_is_no_coverage=fields["zero_is_no_coverage"],
            casts_to_dtype=fields["casts_to_dtype"],
        )


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The arrays of every sample of a data set, in the order they stand in a shard.

    Attributes:
        name: "mantis_shrimp", or "inferred".
        arrays: the survey arrays, in order.
        scalars: names of the numbers in the objects' dicts that become columns of the index.
    """

    name: str
    arrays: tuple[Survey, ...]
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [a.name for a in self.arrays]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"a schema needs arrays with distinct names, not {names}")

    def __getitem__(self, name: str) -> Survey:
        for array in self.arrays:
            if array.name == name:
                return array
        raise KeyError(f"no array {name!r}; the schema has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in order."""
        return tuple(a.name for a in self.arrays)

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one sample: the arrays alone, without container headers."""
        return sum(a.nbytes for a in self.arrays)

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `dataset.json`."""
        return {
            "name": self.name,
            "arrays": [a.to_json() for a in self.arrays],
            "scalars": list(self.scalars),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Schema:
        """The inverse of `to_json`."""
        return cls(
            name=fields["name"],
            arrays=tuple(Survey.from_json(a) for a in fields["arrays"]),
            scalars=tuple(fields["scalars"]),
        )


# Shapes, band order, pixel scales and zero-points as upstream's released data have them
# (pnnl/MantisShrimp; arXiv:2501.09112, section 2). The unWISE pixel scale is the paper's; the
# released downloader also asks for 1.5 arcsec, so `msdata pack --pixel-scale unwise=1.5` overrides.
# Pan-STARRS pixels are counts: their zero-point is 25 + 2.5 log10(EXPTIME), which differs from
# object to object.
MANTIS_SHRIMP = Schema(
    name="mantis_shrimp",
    arrays=(
        Survey(
            name="panstarrs",
            shape=(5, 170, 170),
            bands=("g", "r", "i", "z", "y"),
            pixel_scale_arcsec=0.25,
            unit="count",
            may_have_nan=True,
            casts_to_dtype=True,
        ),
        Survey(
            name="galex",
            shape=(2, 32, 32),
            bands=("NUV", "FUV"),
            pixel_scale_arcsec=1.5,
            unit="count/s",
            zero_points_ab=(20.08, 18.82),
            zero_is_no_coverage=True,
            casts_to_dtype=True,
        ),
        Survey(
            name="unwise",
            shape=(2, 32, 32),
            bands=("W1", "W2"),
            pixel_scale_arcsec=2.75,
            unit="count",
            zero_points_ab=(25.199, 25.839),
            casts_to_dtype=True,
        ),
    ),
)
