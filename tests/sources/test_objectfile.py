"""Object files give their dict, whatever wraps the pickle, and say why where they do not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import hostile_pickles
import numpy as np
import pytest

from msdata.errors import SampleError, StorageError
from msdata.sources.pickles import ObjectReader, read_object


def _sample(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "galex": rng.random((2, 32, 32), np.float32),
        "panstarrs": rng.random((5, 170, 170), np.float32),
        "unwise": rng.random((2, 32, 32), np.float32),
    }


def _save(path: Path, sample: Any, protocol: int | None) -> None:
    if protocol is None:
        np.save(path, sample, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(sample, protocol=protocol))


@pytest.mark.parametrize("extra", [{}, {"redshift": 0.5}])
@pytest.mark.parametrize("protocol", [None, 0, 2, 3, 4, 5])
def test_one_reader_gives_each_file_its_own_arrays(
    tmp_path: Path, protocol: int | None, extra: dict[str, Any]
) -> None:
    reader, samples = ObjectReader(), [_sample(seed) | extra for seed in range(3)]
    path = tmp_path / "x.npy"
    for sample in (*samples, *samples):
        _save(path, sample, protocol)
        hostile_pickles.assert_same(reader.read(path), sample)
        hostile_pickles.assert_same(read_object(path), sample)


def test_files_that_are_equal_outside_their_pixels_are_unpickled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ObjectReader()
    for seed in range(2):
        _save(tmp_path / "x.npy", _sample(seed), None)
        hostile_pickles.assert_same(reader.read(tmp_path / "x.npy"), _sample(seed))
        monkeypatch.setattr("msdata.sources.pickles.load_commands", None)


def test_files_that_differ_outside_their_pixels_do_not_use_the_last_files_template(
    tmp_path: Path,
) -> None:
    reader, path = ObjectReader(), tmp_path / "x.pkl"
    first = _sample(0)
    renamed = {{"galex": "xalex"}.get(key, key): value for key, value in first.items()}
    swapped = first | {"panstarrs": first["panstarrs"].astype(">f4")}
    for sample in (first, renamed, first, swapped, first):
        _save(path, sample, 4)
        hostile_pickles.assert_same(reader.read(path), sample)


def test_what_is_no_such_file_any_more_is_refused_as_if_it_were_the_first(tmp_path: Path) -> None:
    reader, path = ObjectReader(), tmp_path / "x.pkl"
    _save(path, _sample(0), 4)
    reader.read(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(SampleError, match="1 bytes follow the end"):
        reader.read(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(SampleError, match="without a STOP"):
        reader.read(path)
    path.unlink()
    with pytest.raises(StorageError, match="it does not exist"):
        reader.read(path)
    os.mkfifo(path)
    with pytest.raises(SampleError, match="the file is empty"):
        reader.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises((SampleError, StorageError)):
        reader.read(path)


def test_a_dict_in_an_object_array_of_one_item_is_read(tmp_path: Path) -> None:
    array = np.empty(1, object)
    array[0] = {"a": np.arange(4.0)}
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    hostile_pickles.assert_same(read_object(tmp_path / "a.npy"), {"a": np.arange(4.0)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "the dict is empty"),
        ([1], "holds a value of type list, not a dict"),
        (np.zeros(3), "holds an array, not a dict"),
        ({b"a": np.zeros(3)}, "which is not text"),
        ({1: np.zeros(3)}, "the key 1, which is not text"),
        ({"\ud800": 1.0, "a": np.zeros(3)}, r"the key '\\ud800', which cannot name an array"),
    ],
)
def test_what_is_no_dict_of_arrays_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(SampleError, match=message):
        read_object(tmp_path / "a.pkl")


def test_npy_headers_that_promise_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(SampleError, match=r"plain \.npy array \(dtype <f8\)"):
        read_object(path)
    np.save(path, np.array([{}, {}], object), allow_pickle=True)
    with pytest.raises(SampleError, match=r"shape \(2,\), not one dict"):
        read_object(path)
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x00" + b"(" * 100_000)
    with pytest.raises(SampleError, match="header of 16777215 bytes"):
        read_object(path)
    path.write_bytes(b"\x93NUMPY\x01\x00\x40\x00{")
    with pytest.raises(SampleError, match="truncated"):
        read_object(path)
    path.write_bytes(b"")
    with pytest.raises(SampleError, match="the file is empty"):
        read_object(path)
    path.write_bytes(b"GARBAGE, not a pickle.")
    with pytest.raises(SampleError):
        read_object(path)
    with pytest.raises(StorageError, match=r"cannot read .*nope"):
        read_object(tmp_path / "nope")
