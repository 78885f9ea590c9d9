"""What the studies train on: stamps of 24 x 24 pixels in nine bands; for policies packed twice.

Both packs of a seed hold the same samples in the same splits. In one the shards are filled in
random order, as `msdata pack` does; in the other by redshift, as a pack that kept a sorted
catalog's order would be. That other is the control: without it, a harmless order could not be told
from a study that sees no harm at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.augment import AugmentConfig, open_augmenter
from msdata.augment.statistics import FILE_NAME
from msdata.dataset.coding import ArrayCoding, decode_into, encode
from msdata.describe.stats import measure
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

RANDOM, BY_REDSHIFT = "random", "redshift"
EBV = "ebv_csfd"
SIZE = 24
SPLIT = (0.7, 0.0, 0.3)
# One arcsec per pixel: 24 arcsec of the sky, of which a turned crop takes 16.
_RESAMPLING = AugmentConfig(
    fusion="early",
    rotation="none",
    flips=False,
    scaling="none",
    output_size=SIZE,
    crops={"panstarrs": 4 * SIZE},
)
_CHUNK = 100
# Headers, padding and labels, beside 20.7 KB of pixels.
_TAR_OVERHEAD = 1.15


# Objects that are small enough to train on in seconds: surface brightness in NUV FUV g r i z y W1
# W2, and E(B-V) in magnitudes.
STAMP = np.dtype([("image", "<f4", (9, SIZE, SIZE)), ("redshift", "<f8"), ("ebv", "<f8")])
Stamps = NDArray[Any]


def stamps_of(images: NDArray[np.float32], redshift: Any, ebv: Any) -> Stamps:
    """`STAMP` (N,) of float32 (N, 9, 24, 24), redshifts (N,) and E(B-V) (N,)."""
    found = np.empty(len(images), STAMP)
    found["image"], found["redshift"], found["ebv"] = images, redshift, ebv
    return found


def make_stamps(
    data: Path | None, num_objects: int, jobs: int, quantize: Sequence[float | None] = (None,)
) -> list[Stamps]:
    """Stamps of mock objects, made by some processes, or of the first objects of a data set.

    Args:
        data: the data set; None for mock objects.
        num_objects: at most so many.
        jobs: processes.
        quantize: steps per sigma that cutouts are quantized with before; None for float32.

    Returns:
        For each of `quantize` the stamps of the same objects.

    Raises:
        UsageError: the data set has other arrays than Mantis Shrimp's, or no redshifts.
    """
    if data is not None:
        return _joined(_packed_chunks(data, num_objects, quantize))
    starts = range(0, num_objects, _CHUNK)
    with ProcessPoolExecutor(jobs) as pool:
        return _joined(pool.map(partial(_mock_chunk, num_objects, quantize), starts))


def _joined(chunks: Iterable[list[Stamps]]) -> list[Stamps]:
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _mock_chunk(num_objects: int, quantize: Sequence[float | None], start: int) -> list[Stamps]:
    from msdata.mock.objects import build_model, make_object

    model = build_model()
    found = [make_object(model, 0, n) for n in range(start, min(start + _CHUNK, num_objects))]
    batch = {name: np.stack([one.sample[name] for one in found]) for name in MANTIS_SHRIMP.names}
    rows = {c: np.array([float(one.row[c]) for one in found]) for c in ("redshift", EBV)}
    return [_reduced(MANTIS_SHRIMP, batch, rows["redshift"], rows[EBV], q) for q in quantize]


def _packed_chunks(
    data: Path, num_objects: int, quantize: Sequence[float | None]
) -> Iterator[list[Stamps]]:
    dataset = msdata.open(data)
    if set(dataset.schema.names) != set(MANTIS_SHRIMP.names):
        raise UsageError(
            f"{data} holds {', '.join(dataset.schema.names)}; the study of policies makes its "
            f"stamps of {', '.join(MANTIS_SHRIMP.names)}: give such a data set, or --mock N"
        )
    missing = [c for c in ("redshift", EBV) if c not in dataset.columns]
    if missing:
        raise UsageError(f"{data} has no column {missing[0]!r}; pack it with a catalog that has")
    left = num_objects
    for name in dataset.splits:
        with msdata.Loader(dataset.split(name), _CHUNK, columns=["redshift", EBV]) as loader:
            for batch in loader:
                labels = batch["redshift"], batch[EBV]
                chunks = [_reduced(dataset.schema, batch, *labels, q) for q in quantize]
                is_known = np.isfinite(chunks[0]["redshift"]) & np.isfinite(chunks[0]["ebv"])
                kept = np.flatnonzero(is_known)[:left]
                left -= len(kept)
                yield [chunk[kept] for chunk in chunks]
                if not left:
                    return


def _reduced(schema: Schema, batch: Any, redshift: Any, ebv: Any, quantize: float | None) -> Stamps:
    """The batch, quantized, on the stamps' grid, by the augmenter as it is for validation."""
    if quantize is not None:
        batch = {a.name: _recoded(batch[a.name], a, quantize) for a in schema.arrays}
    with open_augmenter(schema, _RESAMPLING, seed=0, batch_size=_CHUNK, threads=1) as augmenter:
        return stamps_of(augmenter.run(batch, 0, train=False)["image"], redshift, ebv)


def _recoded(cutouts: NDArray[np.float32], spec: Survey, quantize: float) -> NDArray[np.float32]:
    coding = ArrayCoding(spec.name, spec.shape, spec.dtype, quantize)
    made = np.empty_like(cutouts)
    for cutout, out in zip(cutouts, made, strict=True):
        found = encode(np.ascontiguousarray(cutout), coding)
        decode_into(found.data, coding, found.steps, found.kind, out)
    return made


def pack_both(stamps: Stamps, folder: Path, *, seed: int, num_shards: int) -> None:
    """Packs data sets `random` and `redshift` in these orders, unless it was done.

    Args:
        stamps: the objects.
        folder: gets the data sets, each with its statistics.
        seed: of splits and order.
        num_shards: about so many in split "train".
    """
    numbers = np.arange(len(stamps))
    random = pack_stamps(stamps, folder / RANDOM, numbers, (seed, num_shards))
    # The k-th place of the random pack's order is given to the object of the k-th redshift: pack
    # knows no other order than that of the ids' hashes.
    for name in msdata.open(random).splits:
        ids = msdata.open(random).split(name).table(["sample_id"]).column(0).to_pylist()
        places = np.array([int(i) for i in ids])
        in_split = np.sort(places)
        numbers[places] = in_split[np.argsort(stamps["redshift"][in_split], kind="stable")]
    pack_stamps(stamps, folder / BY_REDSHIFT, numbers, (seed, num_shards))


def pack_stamps(
    stamps: Stamps,
    out: Path,
    numbers: NDArray[np.int64],
    settings: tuple[int, int],
    split: tuple[float, float, float] = SPLIT,
) -> Path:
    """Packs the stamp `numbers[i]` under the id `i`; its own number becomes a column."""
    if (out / FILE_NAME).is_file():
        return out
    seed, num_shards = settings
    shutil.rmtree(out, ignore_errors=True)
    nbytes = int(_TAR_OVERHEAD * stamps["image"].nbytes * split[0] / num_shards)
    with msdata.Writer(
        out, seed=seed, split_fractions=split, shard_nbytes=nbytes, jobs=1
    ) as writer:
        for place, number in enumerate(numbers.tolist()):
            labels = {"redshift": stamps["redshift"][number], EBV: stamps["ebv"][number]}
            image = stamps["image"][number]
            writer.write(f"{place:07d}", {"image": image}, **labels, object=number)
    measure(msdata.open(out).split("train")).write(out / FILE_NAME)
    return out
