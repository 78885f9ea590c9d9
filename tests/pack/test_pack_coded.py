"""Coded data sets: what `--quantize` and `--compress` keep, and packing a packed data set again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import msdata
from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.dataset import Dataset
from msdata.dataset.hdf5 import move_ranges
from msdata.dataset.hdf5_coded import CodedHdf5Writer
from msdata.dataset.manifest import read_manifest
from msdata.dataset.shard import Record
from msdata.errors import DataError, SampleError, UsageError
from msdata.pack.options import parse_quantize
from msdata.pack.planning import make_plan
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackState
from msdata.schema import Schema, Survey
from msdata.sources.detect import detect_source
from msdata.verify.repair import repair
from msdata.verify.verify import verify_dataset

NUM_OBJECTS = 60
Q4 = {"quantize": {"image": 4.0}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tar": {"container": "tar", **Q4},
    "tar lz4": {"container": "tar", **Q4, "compress": "lz4"},
    "hdf5": {"container": "hdf5", **Q4},
    "hdf5 zstd": {"container": "hdf5", **Q4, "compress": "zstd"},
}
Make = Callable[..., Path]


def make_object(number: int) -> dict[str, Any]:
    """Noise with NaN and zeros; one star beyond the range of int16, and bands without noise."""
    rng = np.random.default_rng(number)
    image = rng.normal(5, 2, (2, 24, 24)).astype(np.float32)
    image[0, 3, 3:5] = np.nan, 0
    if number % 3 == 0:
        image[1] = 0
    if number == 7:
        image[0, 9, 9] = 1e6
    if number in (11, 12):
        image[:] = rng.integers(0, 2, image.shape)
    if number == 13:
        image[1] = 3.25
    return {"image": image, "counts": rng.integers(0, 9, (2, 8), np.int16), "exptime": number / 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    lines = ["id,redshift,field,flag"]
    for number in range(NUM_OBJECTS):
        (folder / f"{number:04d}.pkl").write_bytes(pickle.dumps(make_object(number)))
        lines.append(f"{number},{number / 50},F{number % 4},{number if number % 5 else ''}")
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def make(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Packs the source or a data set, each once."""
    made: dict[str, Path] = {}

    def make_once(root: Path = source, **options: Any) -> Path:
        key = repr((root, sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("packed") / "data"
            is_source = root == source
            settings = PackSettings(
                source=root,
                out=made[key],
                catalog=source / "catalog.csv" if is_source else None,
                shard_nbytes=1 << 16,
                max_nan_fraction=1,
                inpaint=(),
                **options,
            )
            pack(settings)
        return made[key]

    return make_once


def samples_of(data: Dataset) -> dict[str, dict[str, Any]]:
    return {sample["sample_id"]: sample for sample in map(data.__getitem__, range(len(data)))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_come_back_within_half_a_step_and_all_else_bit_for_bit(
    layout: str, make: Make
) -> None:
    data = msdata.open(make(**LAYOUTS[layout]))
    samples = samples_of(data)
    assert len(samples) == NUM_OBJECTS
    for number in range(NUM_OBJECTS):
        wanted, sample = make_object(number), samples[f"{number:04d}"]
        assert np.array_equal(sample["counts"], wanted["counts"])
        assert sample["exptime"] == wanted["exptime"]
        assert sample["redshift"] == number / 50
        for found, pixels, step in zip(
            sample["image"], wanted["image"], sample["step_image"], strict=True
        ):
            special = ~np.isfinite(pixels) | (pixels == 0)
            assert found[special].tobytes() == pixels[special].tobytes()
            error = np.abs(found.astype(float) - pixels)[~special]
            assert error.max(initial=0) <= step * (0.5 + 1e-6) + 1e-7 * np.nanmax(np.abs(found))
        arrays = sample["image"], sample["counts"]
        assert sample["decoded_crc32c"] == crc32c_of_parts(arrays)
        assert (sample["step_image"] == [0, 0]) == (number in (11, 12))
    stored = data.manifest.coding["image"]
    assert (stored.quantize, stored.codes) == (4.0, "<i4")
    assert not verify_dataset(data.path).faults


def test_all_layouts_decode_to_the_same_pixels_and_say_what_is_stored(make: Make) -> None:
    tables = []
    for options in LAYOUTS.values():
        data = msdata.open(make(**options))
        kept = [n for n in data.columns if not n.startswith(("offset", "nbytes", "dtype", "shard"))]
        tables.append(data.table.select([n for n in kept if n != "crc32c"]))
        for name in data.splits:
            split = data.split(name)
            sizes = split.array_nbytes
            assert np.array_equal(sizes.sum(axis=1), split.record_nbytes)
            ends = np.cumsum(split.shard_sizes)
            sums = np.add.reduceat(split.record_nbytes, ends - split.shard_sizes)
            assert np.array_equal(sums, split.shard_record_nbytes)
            assert split.steps("image").shape == (len(split), 2)
            assert split.steps("counts").shape == (len(split), 0)
            assert split.is_coded
    assert all(t.equals(tables[0]) for t in tables)


def test_a_kind_is_as_narrow_as_its_sample_in_a_tar_and_as_its_shard_in_hdf5(make: Make) -> None:
    samples = samples_of(msdata.open(make(**LAYOUTS["tar lz4"])))
    kinds = {number: samples[f"{number:04d}"]["dtype_image"] for number in range(NUM_OBJECTS)}
    wide = {7: "<i4", 11: "<f4", 12: "<f4", 13: "<i4"}
    assert kinds == {n: wide.get(n, "<i2") for n in range(NUM_OBJECTS)}
    for layout in ("hdf5", "hdf5 zstd"):
        data = msdata.open(make(**LAYOUTS[layout]))
        table = data.table
        by_shard: dict[Any, set[str]] = {}
        for sample_id, split, shard, kind in zip(
            *(table[n].to_pylist() for n in ("sample_id", "split", "shard", "dtype_image")),
            strict=True,
        ):
            by_shard.setdefault((split, shard), set()).add(kind)
            assert kind != "<i2" or kinds[int(sample_id)] == "<i2"
        assert all(len(found) == 1 for found in by_shard.values())
        assert {"<i2"} in by_shard.values()
        assert {"<i4"} in by_shard.values()


@pytest.mark.parametrize("compress", ["none", "lz4"])
def test_arrays_of_one_hdf5_shard_widen_one_after_the_other(compress: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(12):
        rng = np.random.default_rng(number)
        sample = {n: rng.normal(0, 1, (1, 16, 16)).astype(np.float32) for n in ("blue", "red")}
        if number % 4 == 1:
            sample["red" if number > 4 else "blue"][0, 5, 5] = 1e5
        if number == 6:
            sample["blue"] = sample["blue"][:, 1:]
        (tmp_path / "source" / f"{number}.pkl").write_bytes(pickle.dumps(sample))
    report = pack(
        PackSettings(
            source=tmp_path / "source",
            out=tmp_path / "out",
            container="hdf5",
            quantize={"*": 4.0},
            compress=compress,
            split_fractions=(1, 0, 0),
        )
    )
    assert (report.num_packed, report.num_rejected) == (11, 1)
    data = msdata.open(tmp_path / "out")
    assert {s.codes for s in data.manifest.coding.values()} == {"<i4"}
    assert set(data.table["dtype_blue"].to_pylist()) == {"<i4"}
    assert np.abs(samples_of(data)["1"]["blue"]).max() == pytest.approx(1e5, rel=1e-5)
    assert not verify_dataset(data.path).faults
    # The first pack reserved a place for the rejected object, the repair knows only the samples.
    (shard,) = data.path.rglob("*.h5")
    before = shard.read_bytes()
    shard.unlink()
    (result,) = repair(verify_dataset(data.path))
    assert result.is_repaired, result
    assert shard.read_bytes() == before


@pytest.mark.parametrize(("num_samples", "num_rejected"), [(1, 1), (40, 700), (1100, 1)])
def test_bytes_of_an_hdf5_shard_do_not_depend_on_rejected_objects(
    num_samples: int, num_rejected: int, tmp_path: Path
) -> None:
    # Chunks of all sizes; more than 1,024 entries make pages of the chunk index.
    shapes = {"image": (2, 40, 40), "counts": (5,), "flag": ()}
    schema = Schema(name="x", arrays=tuple(Survey(name=n, shape=s) for n, s in shapes.items()))
    codings = [ArrayCoding(name=n, shape=s, compress="lz4") for n, s in shapes.items()]
    rng = np.random.default_rng(5)
    records = [
        Record(
            sample_id=f"{number}",
            arrays=tuple(
                rng.integers(0, 256, rng.integers(16, most), np.uint8) for most in (9000, 40, 20)
            ),
            crc32c=0,
            metadata={"sample_id": f"{number}"},
            codes=("<f4", "<f4", "<f4"),
        )
        for number in range(num_samples)
    ]
    found = []
    for extra in (0, num_rejected):
        path = tmp_path / f"shard-{extra}.h5"
        writer = CodedHdf5Writer(
            path, schema, codings, max_samples=num_samples + extra, chunked=False
        )
        for record in records:
            writer.append(record)
        summary = writer.finish()
        content = path.read_bytes()
        for record, places in zip(records, summary.offsets.tolist(), strict=True):
            for array, at in zip(record.arrays, places, strict=True):
                assert content[at : at + array.nbytes] == array.tobytes()
        found.append(
            (
                sha256(content).hexdigest(),
                summary.nbytes,
                summary.frame_crc32c,
                summary.offsets.tolist(),
            )
        )
    assert found[0] == found[1]
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".h5"]


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), max_size=12
    ).flatmap(lambda ranges: st.tuples(st.just(ranges), st.permutations(range(len(ranges)))))
)
def test_ranges_of_a_file_move_to_places_that_overlap_the_old_ones(
    drawn: tuple[list[tuple[int, int, int]], list[int]],
) -> None:
    ranges, order = drawn
    sizes = np.array([size for size, _, _ in ranges], np.int64)
    old, new = np.zeros_like(sizes), np.zeros_like(sizes)
    for places, gaps, numbers in ((old, 1, range(len(ranges))), (new, 2, order)):
        end = 0
        for number in numbers:
            places[number] = end + ranges[number][gaps]
            end = int(places[number] + sizes[number])
    fd = os.memfd_create("test")
    try:
        for number, (at, size) in enumerate(zip(old.tolist(), sizes.tolist(), strict=True)):
            os.pwrite(fd, bytes([number + 1]) * size, at)
        move_ranges(fd, old, new, sizes)
        for number, (at, size) in enumerate(zip(new.tolist(), sizes.tolist(), strict=True)):
            assert os.pread(fd, size, at) == bytes([number + 1]) * size
    finally:
        os.close(fd)


def test_the_json_member_says_how_to_decode(make: Make) -> None:
    split = msdata.open(make(**LAYOUTS["tar lz4"])).split("train")
    with tarfile.open(split.shard_paths[0]) as tar:
        names = tar.getnames()[:3]
        content = tar.extractfile(names[2])
        assert content is not None
        said = json.load(content)
    sample = split[0]
    key = sample["sample_id"]
    assert names == [f"{key}.image.blosc", f"{key}.counts.blosc", f"{key}.json"]
    assert said["coding"] == {
        "image": {
            "step": sample["step_image"],
            "dtype": sample["dtype_image"],
            "shape": [2, 24, 24],
        },
        "counts": {"dtype": "<i2", "shape": [2, 8]},
    }
    assert (said["crc32c"], said["decoded_crc32c"]) == (sample["crc32c"], sample["decoded_crc32c"])


@pytest.mark.parametrize("before", [{}, LAYOUTS["tar lz4"], LAYOUTS["hdf5"]], ids=repr)
def test_a_packed_data_set_is_packed_again_with_its_labels_splits_and_codes(
    before: dict[str, Any], make: Make
) -> None:
    first = make(**before)
    again = msdata.open(make(first, **LAYOUTS["tar lz4"]))
    wanted = msdata.open(make(**LAYOUTS["tar lz4"]))
    assert set(again.columns) == set(wanted.columns)
    left, right = samples_of(again), samples_of(wanted)
    for sample_id, sample in right.items():
        for name in {*sample} - {"shard"} - {n for n in sample if n.startswith("offset")}:
            assert np.array_equal(left[sample_id][name], sample[name], equal_nan=name == "image")
    origin = again.manifest.provenance["packed_from"]
    assert origin["fingerprint"] == read_manifest(first).fingerprint
    assert not verify_dataset(again.path).faults


def test_shards_of_a_repacked_data_set_are_repaired_from_the_first_one(
    make: Make, tmp_path: Path
) -> None:
    first = make()
    out = tmp_path / "data"
    pack(
        PackSettings(source=first, out=out, inpaint=(), max_nan_fraction=1, **LAYOUTS["hdf5 zstd"])
    )
    before = {p: p.read_bytes() for p in out.rglob("*.h5")}
    shards = sorted(before)
    shards[0].unlink()
    split = msdata.open(out).split("train")
    at = int(split.spans.offsets(np.array([0]))[0, 0])
    content = bytearray(split.shard_paths[0].read_bytes()) if split.shard_paths[0].exists() else b""
    if content:
        content[at + 30] ^= 4
        split.shard_paths[0].write_bytes(content)
    results = repair(verify_dataset(out))
    assert results
    assert all(r.is_repaired for r in results), results
    assert {p: p.read_bytes() for p in out.rglob("*.h5")} == before


def test_a_flipped_bit_names_sample_and_shard(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "data"
    settings = PackSettings(source=make(), out=out, inpaint=(), max_nan_fraction=1)
    pack(PackSettings(**{**vars(settings), **LAYOUTS["tar lz4"]}))
    split = msdata.open(out).split("train")
    path, at = split.shard_paths[0], int(split.spans.offsets(np.array([1]))[0, 0]) + 40
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)
    sample_id = split.sample_id(1)
    with pytest.raises(DataError, match=f"{path.name}: sample {sample_id} is corrupt"):
        split[1]
    (fault,) = verify_dataset(out).faults
    assert fault.sample_ids == (sample_id,)
    assert fault.path == f"train/{path.name}"
    # Whoever packs a data set again is told to repair it, instead of getting gaps.
    with pytest.raises(DataError, match=f"{path.name}: sample 1 is corrupt.*verify --repair"):
        pack(PackSettings(source=out, out=tmp_path / "next", inpaint=(), max_nan_fraction=1))


@pytest.mark.parametrize(
    ("quantize", "says"),
    [
        ({"image": None}, "--quantize must quantize one of image, counts; leave it out"),
        ({"counts": 4.0}, "only float32 arrays can be quantized, 'counts' is <i2"),
        ({"colour": 4.0}, "--quantize must name one of image, counts, got colour"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    quantize: dict[str, float], says: str, source: Path, tmp_path: Path
) -> None:
    settings = PackSettings(source=source, out=tmp_path / "out", quantize=quantize)
    with pytest.raises(UsageError, match=says):
        pack(settings)
    assert not (tmp_path / "out" / ".pack").exists()


def test_another_data_set_in_the_place_of_a_source_is_refused(make: Make, tmp_path: Path) -> None:
    first, other = tmp_path / "first", make(seed=1)
    shutil.copytree(make(), first)
    settings = PackSettings(source=first, out=tmp_path / "out", inpaint=(), max_nan_fraction=1)
    state = PackState(settings.out)
    state.folder.mkdir(parents=True)
    make_plan(state, settings)
    shutil.rmtree(first)
    shutil.copytree(other, first)
    with pytest.raises(UsageError, match="started with a SRC of fingerprint"):
        pack(settings, resume=True)
    with pytest.raises(SampleError, match=r"has no sample 7 in train/shard-000099\.tar"):
        detect_source(first).read("train/shard-000099.tar", 7)
    with pytest.raises(SampleError, match=r"has no sample 10000 in train/shard-000000\.tar"):
        detect_source(first).read("train/shard-000000.tar", 10_000)


def test_a_half_packed_data_set_is_not_a_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "half" / ".pack").mkdir(parents=True)
    (tmp_path / "half" / ".pack" / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="is half packed; finish it first"):
        pack(PackSettings(source=tmp_path / "half", out=tmp_path / "out"))


def test_quantize_is_read_as_one_number_or_by_array() -> None:
    assert parse_quantize([]) == {}
    assert parse_quantize(["4", "unwise=8,galex=none"]) == {"*": 4.0, "unwise": 8.0, "galex": None}
    for words, says in (
        (["four"], "must be like 4 or panstarrs=4"),
        (["none"], "must be like 4 or panstarrs=4"),
        (["=4"], "must be like 4 or panstarrs=4"),
        (["unwise="], "must be like 4 or panstarrs=4"),
        (["4", "5"], "must name all arrays once"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_quantize(words)
    for q in (0.0, float("nan"), -1.0):
        with pytest.raises(UsageError, match=rf"--quantize must be from 0\.01 .*, got {q:g}$"):
            PackSettings(source=Path(), out=Path(), quantize={"*": q})
