"""dataset.json and index.parquet: read back as written, and any damage is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzzing
import loading
import numpy as np
import packing
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msdata
from msdata.dataset.arrow_values import arrow_values, cast_exactly
from msdata.dataset.index import file_sha256, fixed_columns, split_rows, write_index
from msdata.dataset.manifest import read_manifest
from msdata.errors import DataError, UsageError
from msdata.loader.columns import fixed_width, is_short_ascii
from msdata.schema import Survey
from msdata.verify.verify import verify_dataset

Packed = Callable[..., Path]


@pytest.fixture
def out(tiny_source: Path, packed: Packed, tmp_path: Path) -> Path:
    """A data set of its own, to be damaged."""
    return shutil.copytree(packed(tiny_source, *packing.TINY_SHARDS), tmp_path / "out")


def test_a_manifest_is_read_as_it_was_written(out: Path, tmp_path: Path) -> None:
    manifest = read_manifest(out)
    manifest.write(tmp_path)
    assert (tmp_path / "dataset.json").read_bytes() == (out / "dataset.json").read_bytes()
    assert manifest.splits == ("train", "val", "test")
    assert manifest.num_samples == 300
    assert manifest.index_sha256 == file_sha256(out / "index.parquet")
    for shard in manifest.shards:
        assert (out / shard.relative_path).stat().st_size == shard.nbytes


def test_no_path_and_no_time_stands_in_the_manifest(out: Path, tiny_source: Path) -> None:
    text = (out / "dataset.json").read_text()
    assert str(tiny_source) not in text
    assert json.loads(text)["provenance"].keys() == {
        "msdata",
        "settings",
        "num_rejected",
        "rejected_sha256",
        "sources_sha256",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(seed=7), "was altered: its fingerprint"),
        (lambda c: c.update(format_version=99), "format version 99"),
        (lambda c: c.pop("schema"), "field 'schema' is missing; restore it or pack again"),
        (lambda c: c.update(splits=[]), "splits must be an object, got a list of 0"),
    ],
)
def test_a_changed_manifest_is_refused(
    change: Callable[[dict[str, object]], object], says: str, out: Path
) -> None:
    content = json.loads((out / "dataset.json").read_text())
    change(content)
    (out / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=says):
        msdata.open(out)


def test_what_is_no_data_set_is_told_from_one_half_packed(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        msdata.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not an msdata dataset"):
        msdata.open(tmp_path)
    (out / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        msdata.open(out)
    (out / "dataset.json").unlink()
    (out / ".pack").mkdir()
    with pytest.raises(UsageError, match=r"half packed; run the same 'msdata pack' with --resume"):
        msdata.open(out)


def test_the_index_has_its_columns_in_order_and_rows_by_split_and_shard(out: Path) -> None:
    data = msdata.open(out)
    fixed = fixed_columns(data.schema)
    assert data.columns[: len(fixed)] == fixed
    table = data.table
    assert [name for name, _, _ in split_rows(table)] == list(data.splits)
    for name in data.splits:
        shards = data.split(name).table(["shard"])["shard"].to_numpy()
        assert (np.diff(shards) >= 0).all()
        sizes = np.bincount(shards)
        assert sizes.max() - sizes.min() <= 1, "the shards of a split are of equal size"


def test_a_missing_or_damaged_index_is_said(out: Path) -> None:
    path = out / "index.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="was altered or truncated: SHA-256"):
        msdata.open(out)
    pq.write_table(pq.read_table(pa.BufferReader(content)).slice(0, 10), path)
    with pytest.raises(DataError, match="was altered or truncated: SHA-256"):
        msdata.open(out)
    path.unlink()
    with pytest.raises(DataError, match=r"index\.parquet is missing"):
        msdata.open(out)


def test_an_index_that_makes_no_sense_is_not_written(out: Path, tmp_path: Path) -> None:
    data = msdata.open(out)
    with pytest.raises(UsageError, match="must have the columns crc32c"):
        write_index(tmp_path, data.table.drop_columns(["crc32c"]), data.schema)
    torn = pa.concat_tables([data.table, data.table.slice(0, 1)])
    with pytest.raises(UsageError, match="split by split"):
        write_index(tmp_path, torn, data.schema)
    assert not list(tmp_path.glob("index*"))


@given(
    kind_and_values=st.sampled_from(
        [
            (pa.int32(), st.integers(-(2**31) + 1, 2**31 - 1)),
            (pa.int64(), st.integers(-(2**63) + 1, 2**63 - 1)),
            (pa.uint64(), st.integers(0, 2**64 - 2)),
            (pa.bool_(), st.booleans()),
            (pa.float32(), st.floats(width=32)),
            (pa.float64(), st.floats()),
        ]
    ).flatmap(lambda k: st.tuples(st.just(k[0]), st.lists(st.none() | k[1], max_size=40))),
    start=st.integers(0, 10),
)
def test_no_value_of_an_arrow_array_is_changed_whatever_is_null(kind_and_values, start) -> None:
    kind, values = kind_and_values
    part = pa.array(values, kind).slice(start)
    found = arrow_values(part)
    assert found.dtype == kind.to_pandas_dtype()
    if pa.types.is_floating(kind):
        wanted = [np.nan if value is None else value for value in values[start:]]
        np.testing.assert_array_equal(found, np.array(wanted, found.dtype))
    else:
        assert found.tolist() == values[start:]
        assert np.ma.isMaskedArray(found) == (None in values[start:])


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "says"),
    [
        ([1, None, 3], pa.int64(), np.int64, "has 1 nulls, which int64 cannot hold"),
        ([1.0, 2.5, None], pa.float64(), np.int32, "has 2 values that are not integers"),
        ([2**53 + 1, None], pa.int64(), np.float64, "holds 9007199254740993, which float64 would"),
        ([2**64 - 1], pa.uint64(), np.float64, "holds 18446744073709551615, which float64"),
        ([0, 300], pa.int64(), np.uint8, "has values from 0 to 300, which uint8 cannot hold"),
        ([2**63], pa.uint64(), np.int64, "has values from 0 to 9223372036854775808, which int64"),
        (["a"], pa.string(), np.float64, "holds no numbers; read it with table"),
    ],
)
def test_numbers_that_a_type_cannot_hold_are_refused(values, kind, dtype, says) -> None:
    with pytest.raises(UsageError, match=says):
        cast_exactly(arrow_values(pa.array(values, kind)), np.dtype(dtype))


def test_numbers_that_fit_are_cast_and_null_is_nan() -> None:
    found = cast_exactly(arrow_values(pa.array([2**53, None, -(2**53)])), np.dtype(np.float64))
    np.testing.assert_array_equal(found, [2.0**53, np.nan, -(2.0**53)])
    found = cast_exactly(arrow_values(pa.array([True, None])), np.dtype(np.float32))
    np.testing.assert_array_equal(found, np.array([1, np.nan], np.float32))
    assert cast_exactly(np.array([1.0, 3.0]), np.dtype(np.uint8)).tolist() == [1, 3]


@given(
    texts=st.lists(st.text(st.characters(max_codepoint=127, exclude_characters="\0"), max_size=24)),
    kind=st.sampled_from([pa.string(), pa.large_string()]),
    start=st.integers(0, 10),
)
def test_short_ascii_texts_become_bytes_of_one_width(
    texts: list[str], kind: pa.DataType, start: int
) -> None:
    part = pa.array(texts, kind).slice(start)
    assert is_short_ascii(part)
    found = fixed_width(part)
    assert found.dtype.itemsize == max(1, *map(len, [*texts[start:], ""]), 0)
    assert [text.decode() for text in found.tolist()] == texts[start:]


@pytest.mark.parametrize("odd", ["é", "x" * 25, None])
def test_other_texts_are_left_to_arrow(odd: str | None) -> None:
    assert not is_short_ascii(pa.array(["a", odd, "b"], pa.string()))
    assert is_short_ascii(pa.array(["a", odd, "b"], pa.string()).slice(2))


# Each would cost every process that loads megabytes, and pandas a third of a second.
@pytest.mark.parametrize("module", ["pandas", "pyarrow.compute"])
def test_a_process_that_loads_imports_arrow_alone(
    tiny_source: Path, packed: Packed, module: str
) -> None:
    data = packed(tiny_source, *loading.options_of("tar"))
    code = (
        "import msdata, sys\n"
        f"split = msdata.open({str(data)!r}).split('train')\n"
        "with msdata.Loader(split, 50, columns=['redshift', 'fold', 'crc32c']) as loader:\n"
        f"    print(sum(len(batch['fold']) for batch in loader), {module!r} in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == [str(loading.NUM_SAMPLES), "False"], found.stderr


def forge(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites the index, and makes its checksum right again."""
    path = out / "index.parquet"
    table = change(pq.read_table(path))
    groups = [table.filter(pc.equal(table["split"], name)) for name in ("train", "val", "test")]
    with pq.ParquetWriter(path, table.schema) as writer:
        for group in groups:
            writer.write_table(group)
    fuzzing.seal(out)


def with_column(name: str, change: Callable[[list], list]) -> Callable[[pa.Table], pa.Table]:
    """Gives a table with one column altered."""

    def altered(table: pa.Table) -> pa.Table:
        values = pa.array(change(table[name].to_pylist()), table[name].type)
        return table.set_column(table.column_names.index(name), name, values)

    return altered


def test_an_altered_label_is_refused_when_the_data_set_is_opened(out: Path) -> None:
    path = out / "index.parquet"
    change = with_column("redshift", lambda values: [0.5, *values[1:]])
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=r"index\.parquet was altered or truncated: SHA-256"):
        msdata.open(out)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_column("offset_image", lambda v: [-1, *v[1:]]), "offset_image must be 0 to .*got -1"),
        (
            with_column("offset_image", lambda v: [2**62, *v[1:]]),
            f"offset_image must be 0 to .*got {2**62}",
        ),
        (with_column("crc32c", lambda v: [None, *v[1:]]), "'crc32c' must not have nulls, got 1"),
        (with_column("sample_id", lambda v: [None, *v[1:]]), "'sample_id' must not have nulls"),
        (
            lambda t: t.drop_columns(["crc32c"]),
            "'crc32c' must hold integer values, got nothing",
        ),
        (
            lambda t: t.set_column(
                t.column_names.index("crc32c"), "crc32c", pa.array([-1] * t.num_rows, pa.int64())
            ),
            "column 'crc32c' has values from -1 to 0, which uint32 cannot hold",
        ),
        (lambda t: t.append_column("shard", t["shard"]), "columns must have distinct names"),
        (lambda t: t.slice(1), "it must have 300 rows, got 299"),
    ],
)
def test_a_forged_index_is_refused_before_anything_is_read_by_it(
    change: Callable[[pa.Table], pa.Table], says: str, out: Path
) -> None:
    forge(out, change)
    with pytest.raises(DataError, match=says):
        msdata.Loader(msdata.open(out).split("train"), 16, verify=True)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([2**32, 2**32], "must have at most"),
        ([2**31], "samples of less than 8589930496 bytes in tar shards"),
        ([2**31, 2**31], "must have at most"),
        ([2**20], r"splits.train.shards\[0\].nbytes must be at least"),
        ([2**63], "must be an integer of 64 bits"),
        ([1] * 33, "must have at most 32 axes"),
        ([-3, -8, -8], "must be a number at least 1"),
        ([True], "must be an integer"),
        (3, "must be a list"),
    ],
)
def test_shapes_that_no_shard_can_hold_are_refused(shape: object, says: str, out: Path) -> None:
    content = json.loads((out / "dataset.json").read_text())
    content["schema"]["arrays"][0]["shape"] = shape
    (out / "dataset.json").write_text(json.dumps(content))
    fuzzing.seal(out)
    with pytest.raises(DataError, match=says):
        msdata.open(out)


def test_a_shape_is_multiplied_without_end() -> None:
    with pytest.raises(UsageError, match=f"must have at most .* bytes, got {2**66:,}"):
        Survey(name="image", shape=(2**32, 2**32))


def test_an_index_that_is_a_pipe_is_not_waited_for(out: Path) -> None:
    (out / "index.parquet").unlink()
    os.mkfifo(out / "index.parquet")
    with pytest.raises(DataError, match="is not a regular file; restore it or pack again"):
        msdata.open(out)
    report = verify_dataset(out)
    assert "is not a regular file" in report.faults[0].message


def test_threads_read_one_index_at_once(tiny_source: Path, packed: Packed) -> None:
    # Threads of a loader name their corrupt samples so; the process crashed in one try of three.
    split = msdata.open(packed(tiny_source, *packing.TINY_SHARDS)).split("train")
    ids = split.table(["sample_id"])["sample_id"].to_pylist()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(split.sample_id, range(len(split)))) == ids
