"""The augmentation between loader and network as one frozen value, saved with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from msdata.errors import UsageError

FUSIONS = ("early", "late")
ROTATIONS = ("any", "exact", "none")
GRIDS = ("sky", "crops")
TURNED_BY = ("sample", "batch")
SCALINGS = ("linear10", "mantis", "asinh", "none")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images are turned, cut, resampled and scaled.

    Attributes:
        fusion: "early": all bands on one grid, as one image; "late": an image per survey, on its
            own grid.
        rotation: "any" angle from [0, 360) degrees; "exact": quarter turns, which interpolate
            nothing on a survey's own grid; "none". All surveys of a sample turn alike.
        turned_by: "sample": each sample is turned and mirrored by its own draw; "batch": all of a
            batch of a rank alike, so that results depend on the number of ranks.
        flips: mirror half of the samples; with "exact" that makes the 8 symmetries of the square,
            with "none" rows and columns are flipped independently.
        scaling: the name of the curve from flux to network input; see `scaling.py`.
        output_size: early fusion: pixels along a side of the common grid.
        grid: early fusion: "sky": a pixel is the same place on the sky in every band, and the field
            is that of the survey with the finest pixels; "crops": each survey's crop fills the
            grid, whatever its field, as in Mantis Shrimp.
        crops: pixels along a side of the crop from each survey's middle, by name; other surveys
            are cut as large as any rotation leaves without missing corners (170 -> 120,
            32 -> 22). With fusion "early" and grid "sky" only the finest survey's matters.
        surveys: arrays to use, in the order of their channels; None means every image of the
            schema, and those of Mantis Shrimp by wavelength.
        noise: Gaussian noise is added to each sample with a standard deviation drawn from
            [0, noise] times the band's sky noise (needs statistics); 0: none.
        psf_blur_arcsec: each sample is blurred by a Gaussian of a standard deviation drawn from
            [0, psf_blur_arcsec]; 0: none.
        band_dropout: each band of a sample is set to 0 with this probability, but never all.
    """

    fusion: str = "early"
    rotation: str = "any"
    turned_by: str = "sample"
    flips: bool = True
    scaling: str = "mantis"
    output_size: int = 120
    grid: str = "sky"
    crops: Mapping[str, int] = field(default_factory=dict)
    surveys: tuple[str, ...] | None = None
    noise: float = 0.0
    psf_blur_arcsec: float = 0.0
    band_dropout: float = 0.0

    def __post_init__(self) -> None:
        choices = {"fusion": FUSIONS, "rotation": ROTATIONS, "grid": GRIDS, "scaling": SCALINGS}
        choices["turned_by"] = TURNED_BY
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        sizes = {"output_size": self.output_size, **{f"crop of {k}": v for k, v in _items(self)}}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise UsageError(
                    f"{name} must be an integer number of pixels, at least 1, got {size!r}"
                )
        if not isinstance(self.flips, bool):
            raise UsageError(f"flips must be True or False, got {self.flips!r}")
        if not (_is_number(self.band_dropout) and 0 <= self.band_dropout < 1):
            raise UsageError(f"band_dropout must be >= 0 and < 1, got {self.band_dropout!r}")
        for name in ("noise", "psf_blur_arcsec"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < float("inf")):
                raise UsageError(f"{name} must be >= 0 and finite, got {value!r}")
        object.__setattr__(self, "surveys", _checked_surveys(self.surveys))
        object.__setattr__(self, "crops", dict(self.crops))

    @property
    def needs_statistics(self) -> bool:
        """Whether scaling or noise need the numbers that `msdata stats` measures."""
        return self.scaling == "asinh" or self.noise > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, fit for JSON."""
        values = asdict(self)
        values["surveys"] = None if self.surveys is None else list(self.surveys)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AugmentConfig:
        """The inverse of `as_dict`; absent entries take their defaults.

        Raises:
            UsageError: an entry is unknown or out of range.
        """
        known = [f.name for f in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise UsageError(
                f"augmentation has no setting {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(known)}"
            )
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_surveys(surveys: Any) -> tuple[str, ...] | None:
    if surveys is None:
        return None
    names = () if isinstance(surveys, str) else tuple(surveys)
    if not names or len(set(names)) != len(names):
        raise UsageError(
            f"surveys must be distinct names of arrays such as ('galex', 'unwise'), got {surveys!r}"
        )
    return names


def _items(config: AugmentConfig) -> list[tuple[str, Any]]:
    try:
        return list(dict(config.crops).items())
    except (TypeError, ValueError):
        raise UsageError(
            f"crops must be pixels by survey such as {{'panstarrs': 120}}, got {config.crops!r}"
        ) from None
