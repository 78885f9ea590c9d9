"""Numbers of objects' dicts keep their value in the index, or are null; none is rounded."""

from __future__ import annotations

import json
import math
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msdata
from msdata.cli import main
from msdata.pack.columns import join_numbers, split_numbers

BIG = 171_972_001_234_567_891
HUGE = (1 << 64) - 5


def _joined(*shards: list[Any]) -> tuple[list[Any], str, int]:
    column = pa.chunked_array([split_numbers(shard) for shard in shards])
    found, num_left_out = join_numbers(column)
    return found.to_pylist(), str(found.type), num_left_out


@pytest.mark.parametrize(
    ("shards", "wanted", "kind", "num_left_out"),
    [
        ([[BIG, 2], [-3]], [BIG, 2, -3], "int64", 0),
        ([[BIG, None], [math.nan]], [BIG, None, None], "int64", 0),
        ([[BIG], [7.0]], [BIG, 7], "int64", 0),
        ([[BIG, BIG + 1], [7.5]], [BIG, BIG + 1, None], "int64", 1),
        ([[BIG, BIG + 1], [math.inf]], [BIG, BIG + 1, None], "int64", 1),
        ([[BIG, 0.5], [7.5]], [None, 0.5, 7.5], "double", 1),
        ([[HUGE, 3], [BIG]], [HUGE, 3, BIG], "uint64", 0),
        ([[HUGE, 3.0], [math.nan]], [HUGE, 3, None], "uint64", 0),
        ([[HUGE, -3], [-4, BIG]], [None, -3, -4, BIG], "int64", 1),
        ([[HUGE, HUGE], [-4, BIG]], [HUGE, HUGE, None, BIG], "uint64", 1),
        ([[1, 2], [0.5, None]], [1.0, 2.0, 0.5, None], "double", 0),
        ([[1 << 53], [0.5]], [float(1 << 53), 0.5], "double", 0),
        ([[(1 << 53) + 1, (1 << 53) + 1], [0.5]], [(1 << 53) + 1] * 2 + [None], "int64", 1),
        ([[None], [None]], [None, None], "double", 0),
        ([[0.25, None]], [0.25, None], "double", 0),
        ([[-(1 << 63), (1 << 63) - 1]], [-(1 << 63), (1 << 63) - 1], "int64", 0),
    ],
)
def test_a_column_takes_the_type_that_keeps_its_numbers(
    shards: list[list[Any]], wanted: list[Any], kind: str, num_left_out: int
) -> None:
    assert _joined(*shards) == (wanted, kind, num_left_out)


_NUMBERS = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-10, 10),
    st.sampled_from([1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, -(1 << 53) - 1]),
)


@given(st.lists(st.lists(_NUMBERS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_number_is_exact_or_null_and_those_left_out_are_counted(
    shards: list[list[Any]],
) -> None:
    found, kind, num_left_out = _joined(*shards)
    given_ = [value for shard in shards for value in shard]
    lost = 0
    for before, after in zip(given_, found, strict=True):
        if after is not None and not (isinstance(after, float) and math.isnan(after)):
            # Python compares whole numbers with floats exactly.
            assert after == before
        elif before is not None and before == before:
            assert after is None
            lost += 1
    assert lost == num_left_out
    if kind == "double":
        is_nan = [isinstance(value, float) and math.isnan(value) for value in given_]
        assert [isinstance(v, float) and math.isnan(v) for v in found] == is_nan


@pytest.mark.parametrize("container", ["tar", "hdf5"])
def test_a_packs_19_digit_numbers_are_exact_whatever_one_object_has(
    container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd: dict[int, Any] = {3: math.nan, 5: None, 11: 7.5}
    for number in range(24):
        sample = {
            "image": np.full((8, 32, 32), number, np.float32),
            "objid": odd.get(number, BIG + number),
            "source": np.uint64(HUGE - number),
        }
        packing.write_object(tmp_path / "in" / f"{number}.pkl", sample)
    out = tmp_path / "out"
    command = ["pack", str(tmp_path / "in"), str(out), "--format", container, "--quiet"]
    assert main([*command, "--jobs", "1", "--shard-size", "64KiB"]) == 0
    said = capsys.readouterr().out
    assert "column 'objid': 1 numbers are null: no type holds them and the others exactly" in said
    table = msdata.open(out).table
    assert [str(table.schema.field(n).type) for n in ("objid", "source")] == ["int64", "uint64"]
    assert len(list((out / "train").glob("shard-*"))) > 1
    for row in table.to_pylist():
        number = int(row["sample_id"])
        assert row["objid"] == (None if number in odd else BIG + number)
        assert row["source"] == HUGE - number
    if container == "tar":
        shard = min((out / "train").glob("*.tar"))
        with tarfile.open(shard) as tar:
            member = next(m for m in tar.getmembers() if m.name.endswith(".json"))
            file = tar.extractfile(member)
            assert file is not None
            metadata = json.load(file)
        number = int(metadata["sample_id"])
        assert metadata["source"] == HUGE - number
    assert main(["verify", str(out)]) == 0


def test_pandas_can_be_imported_after_a_pack_in_the_same_process(tmp_path: Path) -> None:
    packing.write_object(tmp_path / "in" / "a.pkl", packing.tiny_object(1))
    code = (
        "import sys; from msdata.cli import main\n"
        "assert main(['pack', *sys.argv[1:], '--jobs', '1', '--quiet']) == 0\n"
        "import pandas; print(pandas.Series([1, 2]).sum())"
    )
    ran = packing.run([sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "3"
