"""Parquet files as sources: pixel for pixel what pyarrow and Pillow read, and their refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import msdata
from msdata.cli import main
from msdata.errors import DataError, SampleError, UsageError
from msdata.sources.arrays.options import ArrayOptions, find_kind
from msdata.sources.arrays.parquet_rows import ColumnRows
from msdata.sources.arrays.stacks import StackFiles

COUNT = 11
RNG = np.random.default_rng(5)
CUBES = RNG.normal(size=(COUNT, 3, 8, 9)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (COUNT, 12, 10, 3), np.uint8)
BANDS = ("des-g", "des-r", "des-z")
IDS = [f"obj-{n}" for n in range(COUNT)]
REDSHIFT = np.linspace(0, 1, COUNT).astype(np.float32)
LIST_3D = pa.list_(pa.list_(pa.list_(pa.float32())))


def write(path: Path, columns: dict[str, Any], features: Any = None, per_group: int = 4) -> Path:
    """A file with the metadata that `datasets` writes."""
    table = pa.table(columns)
    if features is not None:
        said = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": said})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=per_group)
    return path


def source_of(path: Path, scratch: Path | None = None, **options: Any) -> StackFiles:
    said = None if scratch is None else str(scratch)
    return StackFiles(path, ArrayOptions(kind="parquet", scratch=said, **options))


def encoded(number: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(content, kind)
    return content.getvalue()


def images(place: Path) -> Path:
    column = [{"bytes": encoded(n, "PNG" if n % 2 else "JPEG"), "path": None} for n in range(COUNT)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    classes = [n % 3 - 1 for n in range(COUNT)]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["spiral", "smooth"], "_type": "ClassLabel"},
    }
    return write(
        place / "images.parquet", {"image": pa.array(column, kind), "label": classes}, features
    )


def image_of(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.moveaxis(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), -1, 0)


def arrays(place: Path) -> Path:
    """Array3D as `datasets` stores it: nested lists of an extension type."""
    field = pa.field(
        "image",
        LIST_3D,
        metadata={
            "ARROW:extension:name": "datasets.features.features.Array3DExtensionType",
            "ARROW:extension:metadata": '[[3, 8, 9], "float32"]',
        },
    )
    column = pa.array(CUBES.tolist(), LIST_3D)
    table = pa.Table.from_arrays([column], schema=pa.schema([field]))
    pq.write_table(table, place / "arrays.parquet", row_group_size=4)
    return place / "arrays.parquet"


def fixed(place: Path) -> Path:
    """Fixed-size lists, and a tensor of Arrow's own extension type."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(CUBES.ravel()), 9)
    column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 8), 3)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(CUBES)
    return write(place / "fixed.parquet", {"image": column, "tensor": tensor})


def cube_of(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array(row["image"], np.float32)


def banded(number: int, order: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    return [
        {"band": BANDS[k], "flux": CUBES[number, k].tolist(), "scale": 0.262, "mask": [[True]]}
        for k in order
    ]


def universe(place: Path, rows: list[Any] | None = None, name: str = "universe") -> Path:
    """The Multimodal Universe: a list of bands, whose order differs in every other row."""
    rows = rows or [banded(n, (0, 1, 2) if n % 2 else (2, 0, 1)) for n in range(COUNT)]
    kind = pa.list_(
        pa.struct(
            [
                *(("band", pa.string()), ("flux", pa.list_(pa.list_(pa.float32())))),
                *(("scale", pa.float32()), ("mask", pa.list_(pa.list_(pa.bool_())))),
            ]
        )
    )
    ids = pa.array([i.encode() for i in IDS], pa.binary())
    columns = {"image": pa.array(rows, kind), "object_id": ids, "Z": REDSHIFT}
    return write(place / f"{name}.parquet", columns)


def in_bands(place: Path) -> Path:
    """The same as a struct of lists, as `datasets` stores a sequence of dicts."""
    one = pa.list_(pa.string())
    kind = pa.struct([("band", one), ("flux", LIST_3D), ("scale", pa.list_(pa.float32()))])
    rows = [{"band": BANDS, "flux": c.tolist(), "scale": [0.262] * 3} for c in CUBES]
    return write(place / "sequence.parquet", {"image": pa.array(rows, kind), "object_id": IDS})


def stacked(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The bands by name, in the order that the first rows have."""
    image = row["image"]
    if isinstance(image, list):
        flux = {item["band"]: item["flux"] for item in image}
        return np.array([flux[b] for b in (BANDS[2], *BANDS[:2])], np.float32)
    return np.array(image["flux"], np.float32)


LAYOUTS: dict[str, tuple[Callable[[Path], Path], Callable[[dict[str, Any]], Any]]] = {
    "encoded images": (images, image_of),
    "arrays of datasets": (arrays, cube_of),
    "fixed lists": (fixed, cube_of),
    "list of bands": (universe, stacked),
    "sequence of bands": (in_bands, stacked),
}


@pytest.mark.parametrize("has_scratch", [True, False])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_row_in_any_order_is_what_pyarrow_reads(
    kind: str, has_scratch: bool, tmp_path: Path
) -> None:
    make, told = LAYOUTS[kind]
    path = make(tmp_path)
    source = source_of(path, tmp_path / "rows" if has_scratch else None)
    table = source.scan()
    assert source.schema is not None
    rows = pq.read_table(path).to_pylist()
    order = RNG.permutation(COUNT).tolist()
    for row in [*order, 0, COUNT - 1]:
        sample = source.read(path.name, row)
        assert sample.keys() == set(source.schema.names)
        wanted = told(rows[row])
        for array in sample.values():
            assert array.dtype == wanted.dtype
            assert np.array_equal(array, wanted)
    assert table.num_rows == COUNT
    if "bands" in kind:
        assert table["sample_id"].to_pylist() == sorted(IDS)
        (survey,) = source.schema.arrays
        assert set(survey.bands) == set(BANDS)
        assert survey.pixel_scale_arcsec == 0.262


def test_a_row_group_is_decoded_once_for_all_rows_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = universe(tmp_path)
    decoded = []
    original = ColumnRows._decode
    monkeypatch.setattr(
        ColumnRows, "_decode", lambda self, g, p: (decoded.append(g), original(self, g, p))
    )
    for _ in range(2):
        source = source_of(path, tmp_path / "rows")
        for row in (10, 0, 7, 3, 9, 1):
            source.read(path.name, row)
    assert sorted(decoded) == [0, 1, 2]
    # What was replaced meanwhile is not taken from there.
    assert not np.array_equal(CUBES[5], CUBES[0])
    universe(tmp_path, [banded(5)] * COUNT)
    found = source_of(path, tmp_path / "rows").read(path.name, 0)
    assert np.array_equal(found["image"], CUBES[5])


def test_a_file_is_packed_by_several_processes_and_leaves_nothing_else(tmp_path: Path) -> None:
    rows = [banded(n, (0, 1, 2) if n % 2 else (2, 0, 1)) for n in range(COUNT)]
    rows[3] = [{**item, "flux": item["flux"][:5]} for item in rows[3]]
    path, out = universe(tmp_path, rows), tmp_path / "out"
    assert main(["pack", str(path), str(out), "--jobs", "2", "--quiet"]) == 0
    data = msdata.open(out)
    found = {data[n]["sample_id"]: data[n] for n in range(len(data))}
    assert len(found) == COUNT - 1
    for n, row in enumerate(pq.read_table(path).to_pylist()):
        if n != 3:
            assert np.array_equal(found[IDS[n]]["image"], stacked(row))
            assert found[IDS[n]]["redshift"] == REDSHIFT[n]
    assert not (out / ".pack").exists()
    (_, line) = (out / "rejected.csv").read_text().splitlines()
    assert line.startswith("obj-3,universe.parquet,3,")
    assert "(3, 5, 9)" in line


def test_classes_are_labels_by_number_and_by_name(tmp_path: Path) -> None:
    table = source_of(images(tmp_path)).scan().sort_by("row")
    names = table["label_name"].to_pylist()
    assert table["label"].to_pylist() == [n % 3 - 1 for n in range(COUNT)]
    assert names == [(None, "spiral", "smooth")[n % 3] for n in range(COUNT)]
    chosen = source_of(tmp_path / "images.parquet", labels={"kind": "label_name"}).scan()
    assert chosen.column_names == ["sample_id", "path", "row", "kind"]
    features = {"label": {"names": ["spiral"], "_type": "ClassLabel"}}
    write(tmp_path / "x.parquet", {"image": CUBES.tolist(), "label": [3] * COUNT}, features)
    with pytest.raises(DataError, match=r"'label' has a class 3, but 1 names"):
        source_of(tmp_path / "x.parquet").scan()


def test_flat_lists_need_to_be_named_and_take_a_shape(tmp_path: Path) -> None:
    flat = pa.array(CUBES.reshape(COUNT, -1).tolist(), pa.list_(pa.float32()))
    path = write(tmp_path / "flat.parquet", {"pixels": flat, "id": list(range(COUNT))})
    with pytest.raises(DataError, match=r"flat\.parquet.*'pixels'.*--shape takes it"):
        source_of(path).scan()
    shaped = source_of(path, shapes={"pixels": (3, 8, 9)})
    assert shaped.scan().num_rows == COUNT
    assert np.array_equal(shaped.read(path.name, 4)["pixels"], CUBES[4])
    plain = source_of(path, arrays={"x": "pixels"})
    assert plain.scan().num_rows == COUNT
    assert plain.read(path.name, 4)["x"].shape == (216,)
    with pytest.raises(UsageError, match=r"--shape pixels=3,8,8 must have 216 values"):
        source_of(path, shapes={"pixels": (3, 8, 8)}).scan()
    with pytest.raises(UsageError, match=r"--shape must name one of pixels, got image"):
        ArrayOptions(kind="parquet", shapes={"image": (3, 8, 9)}).check_names(["pixels"])


def spoiled(place: Path, kind: str) -> tuple[Path, int]:
    """A file in which one row is unusable, and its number."""
    cubes: list[Any] = CUBES.tolist()
    rows: list[Any] = [banded(n) for n in range(COUNT)]
    pictures: list[Any] = [{"bytes": encoded(n), "path": None} for n in range(COUNT)]
    if kind == "missing band":
        rows[2] = banded(2, (0, 2))
    elif kind == "null":
        rows[2] = None
    elif kind == "ragged":
        cubes[2][1][3] = cubes[2][1][3][:-1]
    elif kind == "null pixel":
        cubes[2][1][3][4] = None
    elif kind == "path":
        pictures[2] = {"bytes": None, "path": "/etc/passwd"}
    elif kind == "broken":
        pictures[2]["bytes"] = encoded(2)[:-30]
    if kind in ("ragged", "null pixel"):
        return write(place / "x.parquet", {"image": pa.array(cubes, LIST_3D)}), 2
    if kind in ("path", "broken"):
        return write(place / "x.parquet", {"image": pictures}), 2
    return universe(place, rows), 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing band", "its bands are des-g, des-z, others have des-g, des-r, des-z"),
        ("null", "it holds no image: null"),
        ("ragged", "its lists have 8 and 9 entries; all must have as many"),
        ("null pixel", "it holds nulls"),
        ("path", "a path, '/etc/passwd', which is not followed; embed the images"),
        ("broken", "neither a PNG nor a JPEG image, or is truncated"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(kind: str, says: str, tmp_path: Path) -> None:
    path, row = spoiled(tmp_path, kind)
    source = source_of(path)
    source.scan()
    with pytest.raises(SampleError, match=says):
        source.read(path.name, row)
    assert source.read(path.name, row + 1)["image"].size


def test_files_without_arrays_and_broken_ones_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "labels.parquet", {"id": IDS, "z": REDSHIFT, "when": [{"a": 1}] * COUNT})
    with pytest.raises(DataError, match=r"labels\.parquet: .*no column of images.*--catalog"):
        source_of(tmp_path / "labels.parquet").scan()
    path = universe(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"universe\.parquet is not Parquet, or is truncated"):
        source_of(path).scan()
    # The footer is whole, and a page is not.
    path.write_bytes(whole[:900] + bytes(3000) + whole[3900:])
    with pytest.raises(DataError, match=r"universe\.parquet"):
        source = source_of(path)
        source.scan()
        for row in range(COUNT):
            source.read(path.name, row)
    write(tmp_path / "none.parquet", {"image": pa.array([], LIST_3D)})
    with pytest.raises(DataError, match=r"none\.parquet: it has no rows"):
        source_of(tmp_path / "none.parquet").scan()


def test_a_folder_is_one_source_and_a_table_beside_others_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    universe(folder, [banded(n) for n in range(COUNT)], "a")
    universe(folder, [banded(n) for n in range(COUNT)], "b")
    source = source_of(folder)
    table = source.scan()
    assert table.num_rows == 2 * COUNT
    assert np.array_equal(source.read("b.parquet", 3)["image"], CUBES[3])
    assert find_kind(folder) == "parquet"
    assert "split" not in table.column_names
    for old, new in (("a", "train-00000-of-00001"), ("b", "validation-00000-of-00001")):
        (folder / f"{old}.parquet").rename(folder / f"{new}.parquet")
    splits = source_of(folder).scan().sort_by([("path", "ascending")])["split"].to_pylist()
    assert splits == ["train"] * COUNT + ["val"] * COUNT
    np.savez(folder / "c.npz", image=CUBES)
    assert find_kind(folder) == "npz"
