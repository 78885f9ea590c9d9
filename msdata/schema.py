"""The contents of a sample: its survey arrays, with bands, pixel scale, unit and zero-points.

`MANTIS_SHRIMP` is the named default. `infer_schema` describes any other dict of fixed-shape numeric
arrays: such arrays have a name, a shape and a dtype, without bands or units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import JsonValue, Positive, Within
from msdata.errors import UsageError

Array = NDArray[Any]
Sample = dict[str, Any]

# A ring of batches holds many samples; larger ones do not fit into a node's memory.
MAX_SAMPLE_NBYTES = 1 << 36
_MAX_AXES = 32
_DTYPE = re.compile(r"[<>|=]?(\?|[A-Za-z]|[biufc]\d{1,2}|[a-z]{3,10}\d{0,3})")
_Axis = Annotated[int, Within(1, MAX_SAMPLE_NBYTES)]


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
        zero_points_ab: AB magnitude of one unit of flux, one per band; None if it differs from
            object to object.
        may_have_nan: NaN pixels are expected (cores of bright stars); packing inpaints them.
        zero_is_no_coverage: a band of exact zeros means that the survey did not observe there.
        casts_to_dtype: round other numeric dtypes to `dtype`; otherwise accept only casts that keep
            every value.
    """

    name: str
    shape: tuple[_Axis, ...]
    dtype: str = "<f4"
    bands: tuple[str, ...] = ()
    pixel_scale_arcsec: Positive | None = None
    unit: str = ""
    zero_points_ab: tuple[float, ...] | None = None
    may_have_nan: bool = False
    zero_is_no_coverage: bool = False
    casts_to_dtype: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.isidentifier():
            raise UsageError(f"array name must consist of letters, digits and _, got {self.name!r}")
        if any(n < 1 for n in self.shape):
            raise UsageError(f"array {self.name!r} must not have an empty shape, got {self.shape}")
        if len(self.shape) > _MAX_AXES:
            raise UsageError(
                f"array {self.name!r} must have at most {_MAX_AXES} axes, got {len(self.shape)}"
            )
        if self.bands and (not self.shape or len(self.bands) != self.shape[0]):
            raise UsageError(
                f"array {self.name!r} must have one band per entry of its first axis, got "
                f"{len(self.bands)} bands for shape {self.shape}"
            )
        if not _is_little_endian_number(self.dtype):
            raise UsageError(
                f"dtype of array {self.name!r} must be little-endian numeric, got {self.dtype!r}"
            )
        if self.nbytes > MAX_SAMPLE_NBYTES:
            raise UsageError(
                f"array {self.name!r} must have at most {MAX_SAMPLE_NBYTES:,} bytes, got "
                f"{self.nbytes:,} for shape {self.shape}"
            )
        if self.zero_points_ab is not None and len(self.zero_points_ab) != self.num_bands:
            raise UsageError(
                f"array {self.name!r} must have one zero-point per band, got "
                f"{len(self.zero_points_ab)} for {self.num_bands}"
            )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as NumPy knows it."""
        return np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's array."""
        # Python integers: those of NumPy wrap.
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def num_bands(self) -> int:
        """Length of the band axis; 1 for an array without bands."""
        return self.shape[0] if self.bands else 1

    @property
    def has_bands_last(self) -> bool:
        """Whether an array without band names has the shape of (height, width, bands).

        True if the last side is the shortest and the others are equal, at least four times as
        long, or those of a picture with three or four colors.
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


def _is_little_endian_number(dtype: str) -> bool:
    # NumPy's parser accepts a small language and does not raise TypeError only.
    if not _DTYPE.fullmatch(dtype) or dtype.startswith(">"):
        return False
    try:
        return np.dtype(dtype).kind in "biufc"
    except TypeError:
        return False


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The arrays of every sample of a data set, in the order of the shards.

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
            raise UsageError(f"a schema must have arrays with distinct names, got {names}")
        if self.sample_nbytes > MAX_SAMPLE_NBYTES:
            raise UsageError(
                f"a sample must have at most {MAX_SAMPLE_NBYTES:,} bytes, got "
                f"{self.sample_nbytes:,}"
            )

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
    def from_json(cls, fields: JsonValue | Mapping[str, Any]) -> Schema:
        """Inverts `to_json`.

        Args:
            fields: a part of a file, or a plain dict.

        Raises:
            DataError: `fields` does not describe a schema.
        """
        if not isinstance(fields, JsonValue):
            fields = JsonValue(dict(fields), "the schema", "give the result of Schema.to_json")
        return fields.read_as(cls)


# Shapes, band order, pixel scales and zero-points of upstream's released data
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
