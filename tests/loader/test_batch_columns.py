"""Columns beside a batch: exact whatever is null; names that mean two things are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loading
import numpy as np
import pyarrow as pa
import pytest
import raw_dataset
import torch
from torch.utils.data import DataLoader

import msdata
from msdata.dataset.index import check_names
from msdata.errors import DataError, UsageError
from msdata.pack.columns import check_array_names, label_names, scalar_names
from msdata.schema import Schema, Survey

LARGE = 2**62 + 1
COUNT = 12
# By name: type and values of the first samples; all others are the second value.
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "whole": (pa.int64(), [-LARGE, LARGE]),
    "holes": (pa.int64(), [None, LARGE, None]),
    "small": (pa.int8(), [None, 7]),
    "huge": (pa.uint64(), [2**64 - 2, 2**63 + 1]),
    "huge_holes": (pa.uint64(), [None, 2**63 + 1]),
    "flag": (pa.bool_(), [True, False]),
    "flag_holes": (pa.bool_(), [None, True, False]),
    "float_holes": (pa.float32(), [None, 0.5]),
    "text_holes": (pa.string(), [None, "b", ""]),
    "nothing": (pa.null(), [None, None]),
    "day": (pa.date32(), [None, 3]),
}
MASKED = ("holes", "small", "huge_holes", "flag_holes", "text_holes")


def values_of(name: str) -> list[Any]:
    _, given = COLUMNS[name]
    return [given[i] if i < len(given) else given[1] for i in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(4,)),))
    columns = {name: pa.array(values_of(name), kind) for name, (kind, _) in COLUMNS.items()}
    path = tmp_path_factory.mktemp("columns") / "data"
    return raw_dataset.write_raw(path, schema, [7, 5], has_checksums=True, columns_besides=columns)


@pytest.fixture
def split(folder: Path) -> msdata.Split:
    return loading.open_train(folder)


def test_no_value_of_a_batch_is_changed_by_nulls_beside_it(split) -> None:
    names = [name for name in COLUMNS if name != "day"]
    with msdata.Loader(split, 5, columns=names, seed=1) as loader:
        for batch in loader:
            for name in names:
                found = batch[name]
                wanted = [values_of(name)[int(i)] for i in batch["sample_id"]]
                assert np.ma.isMaskedArray(found) == (name in MASKED), name
                if found.dtype.kind == "f":
                    np.testing.assert_array_equal(
                        found, np.array([np.nan if w is None else w for w in wanted], found.dtype)
                    )
                else:
                    assert found.tolist() == wanted, name
            for name in ("whole", "holes", "small", "huge", "huge_holes", "flag", "flag_holes"):
                assert batch[name].dtype == COLUMNS[name][0].to_pandas_dtype()


def test_what_is_below_a_mask_cannot_be_taken_for_a_value(split) -> None:
    names = ["holes", "small", "huge_holes"]
    with msdata.Loader(split, COUNT, columns=names) as loader:
        batch = next(iter(loader))
    for name, absent in zip(names, (-(2**63), -128, 2**64 - 1), strict=True):
        is_null = np.ma.getmaskarray(batch[name])
        assert np.asarray(batch[name])[is_null].tolist() == [absent] * is_null.sum()
        assert batch[name].filled()[is_null].tolist() == [absent] * is_null.sum()


def test_a_single_sample_has_exact_numbers_and_none_for_null(split) -> None:
    for row in range(COUNT):
        sample = split[row]
        for name in ("whole", "holes", "small", "huge", "huge_holes", "flag_holes", "text_holes"):
            assert sample[name] == values_of(name)[row]


def test_numbers_of_a_split_are_exact_or_refused(split) -> None:
    assert split.numbers("whole", np.int64).tolist() == values_of("whole")
    np.testing.assert_array_equal(split.numbers("small"), [np.nan] + [7.0] * (COUNT - 1))
    with pytest.raises(UsageError, match=rf"column 'holes' holds {LARGE}, which float64 would"):
        split.numbers("holes")
    with pytest.raises(UsageError, match="column 'holes' has 2 nulls, which int64 cannot hold"):
        split.numbers("holes", np.int64)
    with pytest.raises(UsageError, match="column 'text_holes' holds no numbers; read it with"):
        split.numbers("text_holes")


@pytest.mark.parametrize("name", MASKED)
def test_nulls_that_no_tensor_holds_are_refused_unless_filled(split, name) -> None:
    count = sum(value is None for value in values_of(name))
    with pytest.raises(
        UsageError, match=rf"column '{name}' has {count} nulls in split 'train', which tensors"
    ):
        msdata.TorchDataset(split, [name])
    with pytest.raises(UsageError, match=rf"'{name}' has {count} nulls .* leave the column out"):
        msdata.Loader(split, 5, columns=[name], as_torch=True)
    if name == "huge_holes":
        return
    filling = {"flag_holes": False, "text_holes": "none"}.get(name, -1)
    dataset = msdata.TorchDataset(split, [name], fill_nulls={name: filling})
    wanted = [filling if value is None else value for value in values_of(name)]
    batch = next(iter(DataLoader(dataset, COUNT, collate_fn=dataset.collate)))
    assert list(batch[name]) == wanted
    plain = next(iter(DataLoader(dataset, COUNT)))
    assert list(plain[name]) == wanted


def test_bool_columns_become_tensors_of_truth_values(split) -> None:
    dataset = msdata.TorchDataset(split, ["flag"])
    batch = next(iter(DataLoader(dataset, COUNT, collate_fn=dataset.collate)))
    assert batch["flag"].dtype == torch.bool
    assert batch["flag"].tolist() == values_of("flag")


@pytest.mark.parametrize(
    ("columns", "fill_nulls", "says"),
    [
        (["huge"], {}, r"holds 18446744073709551614, and PyTorch's integers end at 2\*\*63 - 1"),
        (["day"], {}, "column 'day' holds date32"),
        (["small"], {"small": 1.5}, r"fill_nulls\['small'\] must be a int8, got 1.5"),
        (["small"], {"small": 300}, r"fill_nulls\['small'\] must be a int8, got 300"),
        (["flag_holes"], {"flag_holes": 1}, r"fill_nulls\['flag_holes'\] must be a bool, got 1"),
        (["text_holes"], {"text_holes": 0}, r"fill_nulls\['text_holes'\] must be a str, got 0"),
        (["small"], {"colour": 0}, "fill_nulls names 'colour', which is not among the columns"),
    ],
)
def test_what_no_tensor_holds_is_refused_with_the_cure(split, columns, fill_nulls, says) -> None:
    with pytest.raises(UsageError, match=says):
        msdata.TorchDataset(split, columns, fill_nulls=fill_nulls)


def test_one_name_in_place_of_a_list_is_refused(split) -> None:
    with pytest.raises(UsageError, match=r"columns must be a list of names, got 'flag'; give \['"):
        msdata.Loader(split, 4, columns="flag")


def test_labels_are_double_whatever_the_type_in_the_catalog(tmp_path: Path) -> None:
    schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(4,)),))
    columns = {"redshift": pa.array([1, None, 3], pa.int32())}
    path = raw_dataset.write_raw(tmp_path / "data", schema, [3], columns_besides=columns)
    with msdata.Loader(loading.open_train(path), 3) as loader:
        batch = next(iter(loader))
    assert batch["redshift"].dtype == np.float64
    assert not np.ma.isMaskedArray(batch["redshift"])
    assert int(np.isnan(batch["redshift"]).sum()) == 1


TWO_MEANINGS = [
    *(("x", "filled_x"), ("x", "nan_x"), ("x", "offset_x"), ("is_real",), ("repeat",)),
    *((name,) for name in ("sample_id", "split", "shard", "nbytes", "crc32c", "missing_bands")),
]


def schema_of(names: tuple[str, ...]) -> Schema:
    return Schema(name="inferred", arrays=tuple(Survey(name=n, shape=(2,)) for n in names))


@pytest.mark.parametrize("names", [*TWO_MEANINGS, ("json",), ("redshift",)])
def test_an_array_with_a_name_of_index_or_batch_is_not_packed(names) -> None:
    with pytest.raises(UsageError, match=f"array '{names[-1]}' has a name that the index or a bat"):
        check_array_names(schema_of(names))


@pytest.mark.parametrize("names", TWO_MEANINGS)
def test_a_data_set_with_such_an_array_is_refused_when_it_is_opened(names, tmp_path: Path) -> None:
    path = raw_dataset.write_raw(tmp_path / "data", schema_of(names), [3])
    with pytest.raises(DataError, match=rf"cannot open .*/data: array '{names[-1]}' has a name"):
        msdata.open(path)


def test_an_array_with_the_name_of_a_column_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    schema = schema_of(("image",))
    path = raw_dataset.write_raw(
        tmp_path / "data", schema, [3], columns_besides={"image": [1, 2, 3]}
    )
    with pytest.raises(DataError, match="array 'image' has a name"):
        msdata.open(path)
    check_names(["image", "filled_other"], ["ra"])


def test_columns_with_names_of_batches_step_aside_and_old_ones_are_not_handed_out(
    tmp_path: Path,
) -> None:
    schema = Schema(name="x", arrays=schema_of(("image",)).arrays, scalars=("repeat",))
    labels = label_names(["is_real", "image", "filled_image"], schema)
    assert list(labels.values()) == ["catalog_is_real", "catalog_image", "catalog_filled_image"]
    assert scalar_names(schema, labels.values()) == {"repeat": "object_repeat"}
    path = raw_dataset.write_raw(
        tmp_path / "data", schema, [3], columns_besides={"repeat": [1, 2, 3]}
    )
    split = loading.open_train(path)
    assert split.table(["repeat"])["repeat"].to_pylist() == [1, 2, 3]
    with pytest.raises(UsageError, match="column 'repeat' has a name that batches use for somethi"):
        msdata.Loader(split, 2, columns=["repeat"])
