"""A tree of pickled objects is listed whole, sorted, and read by relative path."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from msdata.errors import DataError, SampleError, StorageError, UsageError
from msdata.sources.blocks import BlockFiles
from msdata.sources.detect import detect_source
from msdata.sources.pickles import PickleTree


def _upstream_tree(root: Path, numbers: list[int]) -> None:
    for number in numbers:
        stem = f"{number:07d}"
        path = root / "photometry" / "/".join(stem[:4]) / f"{stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, {"a": np.full(2000, number, np.float32)}, allow_pickle=True)


def test_upstreams_folders_are_listed_in_order_and_read(tmp_path: Path) -> None:
    numbers = [9999999, 12, 1234567, 5]
    _upstream_tree(tmp_path, numbers)
    (tmp_path / "catalog.csv").write_text("id,z\n1,0.5\n")
    np.save(tmp_path / "exists_mask.npy", np.ones(3, bool))
    source = PickleTree(tmp_path)
    table = source.scan()
    assert table["sample_id"].to_pylist() == [f"{n:07d}" for n in sorted(numbers)]
    assert table["path"][0].as_py() == "photometry/0/0/0/0/0000005.npy"
    assert set(table["row"].to_pylist()) == {-1}
    assert table.schema.names == ["sample_id", "path", "row"]
    for row in table.to_pylist():
        assert source.read(row["path"], row["row"])["a"][0] == int(row["sample_id"])


def test_equal_stems_are_sorted_by_path_and_suffixes_are_all_known(tmp_path: Path) -> None:
    for name in ("b/7.pkl", "a/7.pickle", "a/7.npy", "a/10.pkl", "a/no.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pickle.dumps({"a": np.zeros(2)}))
    table = PickleTree(tmp_path).scan()
    assert table["path"].to_pylist() == ["a/10.pkl", "a/7.npy", "a/7.pickle", "b/7.pkl"]


def test_hidden_and_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    for name in (".x.npy", "x.tmp.npy", "x.npy.part", "x.npy~", "#x.npy#", "good.npy"):
        (tmp_path / name).touch()
    for folder in (".hidden", "#recycle", "~snapshot"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "y.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    assert PickleTree(tmp_path).scan()["path"].to_pylist() == ["good.npy"]


def test_ids_may_begin_with_any_character_but_a_dot(tmp_path: Path) -> None:
    for name in ("#12.npy", "~x.npy", "$1.npy", "_a.npy"):
        (tmp_path / name).touch()
    assert PickleTree(tmp_path).scan()["sample_id"].to_pylist() == ["#12", "$1", "_a", "~x"]


def test_a_loop_of_links_ends_and_no_object_is_listed_twice(tmp_path: Path) -> None:
    _upstream_tree(tmp_path, [1, 2])
    (tmp_path / "photometry" / "0" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "photometry")
    assert PickleTree(tmp_path).scan().num_rows == 2


def test_a_dangling_link_is_listed_and_its_read_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to(tmp_path / "gone")
    source = PickleTree(tmp_path)
    assert source.scan().num_rows == 1
    with pytest.raises(StorageError, match=r"cannot read .*a\.npy: it does not exist"):
        source.read("a.npy", -1)


def test_the_number_of_listers_does_not_change_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _upstream_tree(tmp_path, list(range(0, 9_000_000, 300_007)))
    table = PickleTree(tmp_path).scan()
    monkeypatch.setattr("msdata.sources.listing.NUM_LISTERS", 1)
    assert PickleTree(tmp_path).scan().equals(table)


def test_many_threads_read_their_own_objects(tmp_path: Path) -> None:
    _upstream_tree(tmp_path, list(range(40)))
    source = PickleTree(tmp_path)
    paths = source.scan()["path"].to_pylist() * 20
    with ThreadPoolExecutor(8) as pool:
        for path, sample in zip(paths, pool.map(lambda p: source.read(p, -1), paths), strict=True):
            assert (sample["a"] == int(Path(path).stem)).all()


def test_an_empty_or_missing_root_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no object files \(\*\.npy, \*\.pkl, \*\.pickle\)"):
        PickleTree(tmp_path).scan()
    with pytest.raises(UsageError, match="is not a folder"):
        PickleTree(tmp_path / "nope").scan()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(StorageError, match=r"cannot list .*locked"):
        PickleTree(tmp_path).scan()


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.npy")).touch()
    with pytest.raises(DataError, match="not UTF-8"):
        PickleTree(tmp_path).scan()


def test_a_broken_object_is_a_sample_error(tmp_path: Path) -> None:
    _upstream_tree(tmp_path, [1])
    path = tmp_path / "photometry/0/0/0/0/0000001.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SampleError, match="truncated pickle"):
        PickleTree(tmp_path).read("photometry/0/0/0/0/0000001.npy", -1)


def test_the_layout_of_the_folder_chooses_the_source(tmp_path: Path) -> None:
    _upstream_tree(tmp_path, [1])
    assert isinstance(detect_source(tmp_path), PickleTree)
    (tmp_path / "npy_blocks" / "val").mkdir(parents=True)
    (tmp_path / "npy_blocks" / "val" / "mantis_shrimp_3.npy").touch()
    assert isinstance(detect_source(tmp_path), BlockFiles)
    assert isinstance(detect_source(tmp_path / "npy_blocks"), BlockFiles)
    with pytest.raises(UsageError, match=r"photometri does not exist; did you mean .*photometry\?"):
        detect_source(tmp_path / "photometri")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; give the folder"):
        detect_source(tmp_path / "file")


def test_importing_the_source_does_not_import_pyarrow() -> None:
    code = "import sys, msdata.sources.detect; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
