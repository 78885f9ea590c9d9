"""What the protocol adapters have in common: one array of an object from one service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.fetch.answer import Band
from msdata.fetch.client import Client
from msdata.schema import Survey

# A header has at most some hundred cards.
HEADER_NBYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """One array of an object.

    Attributes:
        pixels: float32 (bands, size, size) of the schema.
        zero_points: AB zero-point of each band.
        files: the FITS files it was cut from, by what follows the id in their names.
        notes: what a reader of the manifest may want to know.
    """

    pixels: NDArray[np.float32]
    zero_points: Mapping[str, float]
    files: Mapping[str, bytes]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Adapter(Protocol):
    """Speaks one service's protocol for one array.

    Attributes:
        survey: the array.
        service: name of the service.
        requests_per_object: as a rule.
    """

    survey: Survey
    service: str
    requests_per_object: int

    def fetch(self, client: Client, position: tuple[float, float]) -> Fetched:
        """Gets the array of the object at a position (right ascension, declination; degrees).

        Raises:
            RefusedError: it cannot be had.
            UnavailableError: the service did not deliver it.
            StoppedError: the run is ending.
        """


def combined(
    survey: Survey, bands: Mapping[str, Band], files: Mapping[str, bytes], **notes: Any
) -> Fetched:
    """One array of its bands' stamps, in the schema's order.

    Args:
        survey: the array.
        bands: a stamp for each of its bands.
        files: see `Fetched`.
        notes: see `Fetched`; NaN and bands without coverage are added.
    """
    pixels = np.stack([bands[band].pixels for band in survey.bands])
    nan = {band: stamp.num_nan for band, stamp in bands.items() if stamp.num_nan}
    if nan:
        notes["nan_pixels"] = nan
    if survey.zero_is_no_coverage:
        empty = [b for b, image in zip(survey.bands, pixels, strict=True) if not image.any()]
        if empty:
            notes["no_coverage"] = empty
    zero_points = {band: bands[band].zero_point for band in survey.bands}
    return Fetched(pixels=pixels, zero_points=zero_points, files=files, notes=notes)


def place_query(position: tuple[float, float]) -> dict[str, str]:
    """A position for a query: to a tenth of a milliarcsecond, without an exponent."""
    return {"ra": f"{position[0]:.8f}", "dec": f"{position[1]:.8f}"}


def max_fits_nbytes(survey: Survey, size: int, num_bands: int) -> int:
    """Bytes that an answer of float64 images of this size has at most, with a generous header."""
    return 2 * (8 * size * size * num_bands + HEADER_NBYTES)
