"""The settings of a pack: everything that decides its bytes, not where it runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msdata.catalog.values import EBV_RANGE, REDSHIFT_RANGE, Limits
from msdata.dataset.coding import COMPRESSORS
from msdata.dataset.manifest import CONTAINERS, read_manifest
from msdata.errors import UsageError
from msdata.sources.arrays.options import ArrayOptions
from msdata.sources.detect import is_packed
from msdata.sources.fits_options import FitsOptions

# The option that sets each setting, for messages.
OPTIONS = {
    "source": "SRC",
    "source_fingerprint": "a SRC of fingerprint",
    "container": "--format",
    "shard_nbytes": "--shard-size",
    "split_fractions": "--split",
    "pixel_scales_arcsec": "--pixel-scale",
    "unlabelled": "--unlabeled",
    "units": "--unit",
    "zero_points_ab": "--zero-point",
    "arrays": "--arrays, --labels and --layout",
    "fits.fills_missing": "--missing",
    "fits.surveys": "--survey",
    "fits.patterns": "--fits",
    "fits.bands": "--fits-bands",
    "fits.sizes": "--fits-size",
    "fits.pixel_scales_arcsec": "--pixel-scale",
    "fits.calibration": "--calibrate",
}
SPLIT_NAMES = ("train", "val", "test")
SPLIT_BY = ("id", "sky")
# Large enough for sequential reads on a parallel file system, small enough that thousands of nodes
# can each own a few of 2.5 TB.
MAX_SHARD_NBYTES = 1 << 30
# A small data set is cut finer: shards are what processes pack and nodes own, and 2.4 GB in four of
# them leave all but four without any. Two processes are not faster for it (606 against 612/s),
# but of five shards one of them would pack three.
_MIN_SHARDS = 24
_MIN_SHARD_NBYTES = 1 << 25
# The codec takes no finer steps.
_MAX_QUANTIZE = 10_000


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """Everything that decides the bytes of the result; the same settings give the same bytes.

    Attributes:
        source: folder with the objects, or file of arrays.
        out: the data set's folder.
        catalog: table of the labels, for `msdata.catalog.table.read_table`; None packs without.
        container: "tar" or "hdf5".
        chunked: HDF5 with one chunk per sample instead of contiguous arrays.
        shard_nbytes: upper bound of a shard's size; None: 1 GiB, less for a small data set.
        split_fractions: fractions of train, val and test; they add up to 1.
        split_by: what the fractions are drawn by: "id", or "sky": whole cells of a degree.
        split_column: catalog column that names each object's split instead.
        seed: what splits and placement are drawn with.
        id_column: catalog column with the objects' ids; None looks for a known name.
        redshift_column: catalog column with the label; None looks for a known name.
        unlabelled: objects and catalog may lack redshifts.
        redshift_range: lowest and highest redshift to believe; others count as absent.
        ebv_range: lowest and highest E(B-V) to believe, magnitudes.
        inpaint: names of arrays whose NaN are filled; None means those that the schema expects.
        max_nan_fraction: an object is rejected when more of a band is NaN.
        missing: "reject" an object that lacks an array or a band, or "fill" these with NaN, or
            "fill=VALUE"; the index column `missing_bands` lists what was filled.
        pixel_scales_arcsec: pixel scales that differ from the schema's, by array.
        bands: names of bands, by array.
        units: units of the pixels, by array.
        zero_points_ab: AB magnitude of one unit of flux, one or one per band, by array.
        fits: how to read FITS files; None for other sources.
        arrays: how to read HDF5, NPZ, Zarr, tars and images; None for other sources.
        quantize: noise of a band in steps of its codes, by array; "*" stands for every other
            float32 array, None for an array that is not quantized.
        compress: "none", "lz4" or "zstd", for every array.
    """

    source: Path
    out: Path
    catalog: Path | None = None
    container: str = "tar"
    chunked: bool = False
    shard_nbytes: int | None = None
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2)
    split_by: str = "id"
    split_column: str | None = None
    seed: int = 0
    id_column: str | None = None
    redshift_column: str | None = None
    unlabelled: bool = False
    redshift_range: Limits = REDSHIFT_RANGE
    ebv_range: Limits = EBV_RANGE
    inpaint: tuple[str, ...] | None = None
    max_nan_fraction: float = 0.01
    missing: str = "reject"
    pixel_scales_arcsec: Mapping[str, float] | None = None
    bands: Mapping[str, tuple[str, ...]] | None = None
    units: Mapping[str, str] | None = None
    zero_points_ab: Mapping[str, tuple[float, ...]] | None = None
    fits: FitsOptions | None = None
    arrays: ArrayOptions | None = None
    quantize: Mapping[str, float | None] | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        if self.arrays is not None:
            # With the state of the unfinished pack, which goes when it is finished.
            scratch = str((self.out / ".pack" / "rows").absolute())
            object.__setattr__(self, "arrays", replace(self.arrays, scratch=scratch))
        if self.container not in CONTAINERS:
            raise UsageError(f"--format must be {' or '.join(CONTAINERS)}, got {self.container!r}")
        if self.chunked and self.container != "hdf5":
            raise UsageError("--chunked needs --format hdf5; leave it out")
        if self.shard_nbytes is not None and self.shard_nbytes < 1 << 16:
            raise UsageError(f"--shard-size must be at least 64KiB, got {self.shard_nbytes} B")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed must be 0 to 2**63 - 1, got {self.seed}")
        if not 0 <= self.max_nan_fraction <= 1:
            raise UsageError(f"--max-nan-fraction must be 0 to 1, got {self.max_nan_fraction}")
        fills_missing = self.fill is not None
        if self.fits is not None and self.fits.fills_missing != fills_missing:
            raise UsageError(
                f"missing={self.missing!r} needs FitsOptions(fills_missing={fills_missing})"
            )
        _check_limits("--redshift-range", self.redshift_range, above=-1.0)
        _check_limits("--ebv-range", self.ebv_range, above=-math.inf)
        if self.compress not in COMPRESSORS:
            raise UsageError(
                f"--compress must be one of {', '.join(COMPRESSORS)}, got {self.compress!r}"
            )
        for name, q in (self.quantize or {}).items():
            if q is not None and not 0.01 <= q <= _MAX_QUANTIZE:
                said = f"{q:g}" if name == "*" else f"{name}={q:g}"
                raise UsageError(f"--quantize must be from 0.01 to {_MAX_QUANTIZE}, got {said}")
        for name, scale in (self.pixel_scales_arcsec or {}).items():
            if not 0 < scale < math.inf:
                raise UsageError(f"--pixel-scale must be arcsec above 0, got {name}={scale:g}")
        for name, points in (self.zero_points_ab or {}).items():
            if not points or not all(map(math.isfinite, points)):
                raise UsageError(f"--zero-point must be magnitudes, got {name}={points}")
        if self.split_by not in SPLIT_BY:
            raise UsageError(
                f"--split-by must be one of {', '.join(SPLIT_BY)}, got {self.split_by!r}"
            )
        fractions = self.split_fractions
        # Written so that NaN, of which no comparison is true, is refused as well.
        are_fractions = all(f >= 0 for f in fractions) and abs(sum(fractions) - 1) <= 1e-6
        if len(fractions) != len(SPLIT_NAMES) or not are_fractions:
            raise UsageError(
                "--split must be three fractions (train, val, test) that add up to 1, such as "
                f"0.7,0.1,0.2, got {','.join(f'{f:g}' for f in fractions)}"
            )

    @property
    def fill(self) -> float | None:
        """The pixels of a band that an object lacks; None rejects the object."""
        return parse_missing(self.missing)

    def samples_per_shard(self, num_samples: int, record_nbytes: int) -> int:
        """How many samples a shard may have.

        Args:
            num_samples: samples in the whole data set.
            record_nbytes: bytes of one sample in a shard, headers included.
        """
        nbytes = self.shard_nbytes
        if nbytes is None:
            share = num_samples * record_nbytes // _MIN_SHARDS
            nbytes = min(MAX_SHARD_NBYTES, max(_MIN_SHARD_NBYTES, share))
        return max(1, nbytes // record_nbytes)

    def to_json(self) -> dict[str, Any]:
        """What `--resume` compares, and the provenance without paths."""
        packed = {}
        if is_packed(self.source):
            packed["source_fingerprint"] = read_manifest(self.source).fingerprint
        return {
            **packed,
            "catalog": None if self.catalog is None else str(self.catalog.absolute()),
            "source": str(self.source.absolute()),
            **self.provenance(),
            "split_by": self.split_by,
        }

    def check_same(self, before: Mapping[str, Any], out: Path) -> None:
        """Refuses to resume a pack that was started with other settings.

        Args:
            before: `to_json` or `provenance` of the settings it was started with.
            out: the data set's folder, for the message.

        Raises:
            UsageError: they differ; the message names the option.
        """
        unset: dict[str, Any] = {"bands": {}, "units": {}, "zero_points_ab": {}, "arrays": None}
        unset |= {"missing": "reject", "fits.fills_missing": False, "split_by": "id"}
        started_with = {"quantize": {}, "compress": "none", **unset, **_flat(before)}
        for name, value in _flat(self.to_json()).items():
            if name in started_with and value != started_with[name]:
                option = OPTIONS.get(name, "--" + name.replace("_", "-"))
                raise UsageError(
                    f"{out} was started with {option} {_as_option(started_with[name])}, not "
                    f"{_as_option(value)}; resume with the same options, or pack into another "
                    "folder"
                )

    def source_options(self) -> dict[str, Any]:
        """How to read the source, as JSON for worker processes."""
        return {
            "fits": None if self.fits is None else self.fits.to_json(),
            "arrays": None if self.arrays is None else asdict(self.arrays),
        }

    def provenance(self) -> dict[str, Any]:
        """The settings that `dataset.json` records: no paths, they differ between machines."""
        return {
            "container": self.container,
            "chunked": self.chunked,
            "shard_nbytes": self.shard_nbytes,
            "split_fractions": list(self.split_fractions),
            "split_column": self.split_column,
            "seed": self.seed,
            "id_column": self.id_column,
            "redshift_column": self.redshift_column,
            "unlabelled": self.unlabelled,
            "redshift_range": list(self.redshift_range),
            "ebv_range": list(self.ebv_range),
            "inpaint": None if self.inpaint is None else list(self.inpaint),
            "max_nan_fraction": self.max_nan_fraction,
            "missing": self.missing,
            "quantize": dict(self.quantize or {}),
            "compress": self.compress,
            "pixel_scales_arcsec": dict(self.pixel_scales_arcsec or {}),
            "bands": {name: list(bands) for name, bands in (self.bands or {}).items()},
            "units": dict(self.units or {}),
            "zero_points_ab": {n: list(p) for n, p in (self.zero_points_ab or {}).items()},
            "arrays": None if self.arrays is None else self.arrays.to_json(),
            **({} if self.fits is None else {"fits": self.fits.to_json()}),
            # Left out where it is the default, so that equal data sets have equal manifests.
            **({} if self.split_by == "id" else {"split_by": self.split_by}),
        }


def parse_missing(text: str) -> float | None:
    """The pixels that `--missing` fills with; None where it rejects.

    Raises:
        UsageError: the text is not one of its values.
    """
    word, equals, value = text.partition("=")
    with suppress(ValueError):
        if text == "reject":
            return None
        if word == "fill" and math.isfinite(float(value or 0)) and bool(equals) == bool(value):
            return float(value) if equals else math.nan
    raise UsageError(f"--missing must be reject, fill or fill=NUMBER, got {text!r}")


def _check_limits(option: str, limits: Limits, *, above: float) -> None:
    low, high = limits
    # Written so that NaN, of which no comparison is true, is refused as well.
    if not above < low < high < math.inf:
        bound = f" above {above:g}" if above > -math.inf else ""
        raise UsageError(
            f"{option} must be two increasing numbers{bound}, got {low:g} and {high:g}"
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those for FITS files one by one, as options are given."""
    flat = {name: value for name, value in values.items() if name != "fits"}
    return flat | {f"fits.{name}": value for name, value in (values.get("fits") or {}).items()}


def _as_element(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    # A survey: its name, and what tells two files of one name apart.
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
    return f"{value.get('name')} ({digest})"


def _as_option(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, list):
        return ",".join(map(_as_element, value)) or "none"
    if isinstance(value, dict):
        return " ".join(str(v) if k == "*" else f"{k}={v}" for k, v in value.items()) or "(none)"
    return str(value)
