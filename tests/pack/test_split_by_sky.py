"""Splits by position: whole cells, stable, and refused without positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import msdata
from msdata.catalog.sky_cells import cell_names
from msdata.cli import main
from msdata.errors import UsageError


def make_table(ra: list[float] | np.ndarray, dec: list[float] | np.ndarray) -> pa.Table:
    ids = [f"{i}" for i in range(len(ra))]
    return pa.table({"sample_id": ids, "ra": pa.array(ra), "dec": pa.array(dec)})


def test_cells_are_a_degree_wide_everywhere_and_wrap_at_right_ascension_0() -> None:
    names = cell_names(make_table([0.0, 0.9, 1.1, 360.0, 10.0], [0.1, 0.9, 0.5, 0.2, -0.1]))
    assert names[0] == names[1] == names[3]
    assert len({names[0], names[2], names[4]}) == 3
    random = np.random.default_rng(0)
    dec = np.degrees(np.arcsin(random.uniform(-1, 1, 60_000)))
    counts = np.unique(
        cell_names(make_table(random.uniform(0, 360, 60_000), dec)), return_counts=True
    )
    # 41,253 square degrees.
    assert len(counts[0]) == pytest.approx(41_253 * (1 - np.exp(-60_000 / 41_253)), rel=0.02)
    assert counts[1].max() < 12
    poles = cell_names(make_table([0.0, 120.0, 0.0], [90.0, 89.9, -90.0]))
    assert len(set(poles)) <= 3


def write_catalog(path: Path, count: int = 300) -> Path:
    """Objects in 40 fields of half a degree; no two fields share a cell."""
    random = np.random.default_rng(1)
    rows = ["mantis_id,redshift,ra,dec"]
    for number in range(count):
        ra, dec = 5 * (number % 40) + random.uniform(0.1, 0.6), random.uniform(0.1, 0.9)
        rows.append(f"{number},0.5,{ra:.4f},{dec:.4f}")
    path.write_text("\n".join(rows) + "\n")
    return path


def words_of(source: Path, out: Path, catalog: Path) -> list[str]:
    return ["pack", str(source), str(out), "--catalog", str(catalog), "--jobs", "1", "--quiet"]


def test_objects_of_a_field_are_in_one_split_and_fewer_objects_move_none(
    tiny_source: Path, tmp_path: Path
) -> None:
    found = {}
    for count in (300, 60):
        out = tmp_path / str(count)
        words = words_of(tiny_source, out, write_catalog(tmp_path / f"{count}.csv", count))
        words += ["--max-rejected", "300", "--split-by", "sky", "--split", "0.5,0.2,0.3"]
        assert main(words) == 0
        table = msdata.open(out).table.select(["sample_id", "split"]).to_pydict()
        found[count] = dict(zip(*table.values(), strict=True))
        assert len(found[count]) == count
    fields: dict[int, set[str]] = {}
    for name, split in found[300].items():
        fields.setdefault(int(name) % 40, set()).add(split)
    assert len(fields) == 40
    assert all(len(splits) == 1 for splits in fields.values())
    assert set(found[300].values()) == {"train", "val", "test"}
    assert found[60].items() <= found[300].items()
    settings = msdata.open(tmp_path / "300").manifest.provenance["settings"]
    assert settings["split_by"] == "sky"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split-column", "fold"], "--split-by sky and --split-column fold contradict each"),
        (["--resume"], "was started with --split-by id, not sky"),
    ],
)
def test_contradictions_are_refused(
    options: list[str],
    message: str,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(tiny_source, tmp_path / "out", write_catalog(tmp_path / "catalog.csv"))
    if "--resume" in options:
        assert main(words) == 0
    assert main([*words, "--split-by", "sky", *options]) == 2
    assert message in capsys.readouterr().err


def test_objects_without_a_position_are_named_and_counted() -> None:
    with pytest.raises(
        UsageError, match="2 of 3 objects have no possible position, the first is '1'"
    ):
        cell_names(make_table([1.0, np.nan, 1.0], [0.0, 0.0, 91.0]))
    with pytest.raises(UsageError, match="'dec' is missing; the objects have sample_id, ra"):
        cell_names(make_table([1.0], [0.0]).drop_columns(["dec"]))
    text = pa.table({"sample_id": ["a"], "ra": ["01:02"], "dec": [1.0]})
    with pytest.raises(UsageError, match="needs numbers in column 'ra', got string"):
        cell_names(text)
