"""Embeddings: the same on any ranks and from a model file, neighbors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import training

import msdata
import mstrain
from msdata.core.output_file import PNG_MARK
from msdata.errors import UsageError
from mstrain.cli import main
from mstrain.embedding.distance import nearest
from mstrain.embedding.embeddings import read_embeddings
from mstrain.embedding.neighbors import find_neighbors
from mstrain.models.image_statistics import image_statistics


@pytest.fixture(scope="module")
def table(weighted_run: Path, galaxies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all 60 samples."""
    path = tmp_path_factory.mktemp("embedded") / "new" / "e.parquet"
    words = ["embed", str(weighted_run), str(galaxies), str(path), "--columns", "ra,redshift"]
    assert main([*words, "--quiet", "--device", "cpu"]) == 0
    return path


def values_of(path: Path) -> np.ndarray:
    return np.concatenate(list(read_embeddings(path).parts()))


def test_rows_columns_and_metadata_are_those_of_the_index(
    table: Path, weighted_run: Path, galaxies: Path
) -> None:
    found, data = read_embeddings(table), msdata.open(galaxies)
    ids = [i for n in ("train", "val") for i in data.split(n).table()["sample_id"].to_pylist()]
    assert found.columns["sample_id"].tolist() == ids
    assert found.columns.keys() == {"sample_id", "split", "ra", "redshift"}
    np.testing.assert_array_equal(found.columns["ra"][:49], data.split("train").numbers("ra"))
    assert found.origin["run"] == str(weighted_run)
    assert found.origin["checkpoint"] == "best"
    assert found.origin["fingerprint"] == data.manifest.fingerprint
    assert "prior" not in found.origin
    assert found.of_rows(np.array([59, 3])).tobytes() == values_of(table)[[59, 3]].tobytes()


def test_the_head_makes_the_predictions_of_the_hidden_layer(
    weighted_run: Path, galaxies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hidden.parquet"
    hidden = mstrain.embed(
        weighted_run, galaxies, out, layer="hidden", split="val", device="cpu", is_quiet=True
    )
    assert hidden.num_values == 16
    pixels = mstrain.embed(
        *(weighted_run, galaxies, tmp_path / "pixels.parquet"),
        layer="pixels",
        device="cpu",
        is_quiet=True,
    )
    assert (pixels.num_values, len(pixels)) == (9 * 5, 60)
    predicted = mstrain.predict(
        *(weighted_run, galaxies, tmp_path / "p.parquet"),
        split="val",
        prior="as-trained",
        device="cpu",
        is_quiet=True,
    )
    model, _ = mstrain.load_model(weighted_run)
    last = model.head.layers[-1]
    logits = values_of(out).astype(np.float32) @ last.weight.numpy().T + last.bias.numpy()
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    density = np.concatenate(list(predicted.density_parts()))
    np.testing.assert_allclose(share / np.diff(predicted.edges), density, rtol=0.01, atol=1e-3)


def test_pixels_are_means_and_noise_of_zones_around_the_middle() -> None:
    y, x = np.mgrid[:33, :33] - 16
    radius = np.hypot(y, x)
    image = np.digitize(radius, [2.0625, 4.125, 8.25], right=True).astype(np.float32)
    image[radius > 8.25] += np.where((x + y)[radius > 8.25] % 2, 0.5, -0.5)
    images = {
        "a": torch.from_numpy(np.stack([image, 10 * image])[None]),
        "b": torch.ones(1, 1, 4, 4),
    }
    found = image_statistics(images).numpy()[0]
    expected = np.array([[0, 1, 2, 3, 0.5]]).T * [1, 10]
    np.testing.assert_allclose(found[:10], expected.ravel(), atol=0.1)
    # Images of four pixels a side have no sky, and float16 has an end.
    np.testing.assert_array_equal(found[10:], [1, 1, 1, 0, 0])
    assert image_statistics({"a": torch.full((1, 1, 9, 9), 1e9)}).max() == 65_504


def test_four_ranks_give_the_table_of_one_process(
    table: Path, weighted_run: Path, galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    words = ["embed", str(weighted_run), str(galaxies), str(out), "--batch-size", "7", "--quiet"]
    ranks.run([*words, "--columns", "ra,redshift"], 4)
    found, expected = read_embeddings(out), read_embeddings(table)
    assert found.columns["sample_id"].tolist() == expected.columns["sample_id"].tolist()
    assert found.origin == expected.origin
    # Batches of other sizes are summed in another order: a last bit of float16.
    np.testing.assert_allclose(values_of(out), values_of(table), rtol=1.1e-3, atol=1e-6)


def test_a_model_file_gives_the_bits_of_its_run_and_a_second_run_replaces_the_table(
    table: Path, weighted_run: Path, galaxies: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "MODEL.msz", tmp_path / "e.parquet"
    mstrain.export(weighted_run, model)
    for _ in range(2):
        found = mstrain.embed(model, galaxies, out, device="cpu", is_quiet=True)
    assert values_of(out).tobytes() == values_of(table).tobytes()
    assert found.origin["run"] == str(model)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_nearest_are_those_of_all_differences_in_any_blocks(monkeypatch) -> None:
    random = np.random.default_rng(0)
    reference, query = random.normal(size=(300, 5)), random.normal(size=(40, 5))
    reference[17] = query[3]
    reference = reference.astype(np.float32)
    monkeypatch.setattr("mstrain.embedding.distance._QUERIES", 16)
    monkeypatch.setattr("mstrain.embedding.distance._REFERENCES", 64)
    parts = [reference[:100], reference[100:101], reference[101:]]
    distance, row = nearest(query, parts, 7)
    every = np.linalg.norm(query.astype(np.float32)[:, None] - reference.astype(float), axis=2)
    np.testing.assert_array_equal(row, np.argsort(every, axis=1)[:, :7])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :7], rtol=1e-6, atol=1e-9)
    assert (distance[3, 0], row[3, 0]) == (0, 17)
    assert nearest(query, [reference[:4]], 7)[0].shape == (40, 4)


def test_neighbors_are_drawn_and_listed_by_cosine_and_by_distance(
    table: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, ids = values_of(table).astype(float), read_embeddings(table).columns["sample_id"]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = {
        "cosine": 1 - unit @ unit[5],
        "euclidean": np.linalg.norm(values - values[5], axis=1),
    }
    for metric, distance in expected.items():
        out = tmp_path / f"{metric}.png"
        words = ["neighbors", str(table), str(galaxies), str(out), "--of", ids[5], "--n", "4"]
        assert main([*words, "--metric", metric, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["neighbors"]
        distance[5] = np.inf
        order = np.argsort(distance)[:4]
        np.testing.assert_allclose(
            [n["distance"] for n in found], distance[order], rtol=1e-3, atol=1e-6
        )
        assert ids[5] not in [n["sample_id"] for n in found]
        assert PNG_MARK in out.read_bytes()
        assert cv2.imread(str(out)).shape[0] > 5 * 128
    assert len(find_neighbors(read_embeddings(table), ids[0], 100)) == 59


def test_what_cannot_be_embedded_or_compared_is_refused(
    table: Path, weighted_run: Path, galaxies: Path, tmp_path: Path, capsys
) -> None:
    def said(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    out = tmp_path / "e.parquet"
    embed = ("embed", weighted_run, galaxies)
    assert "must end in .parquet" in said(*embed, tmp_path / "e.csv")
    assert "has no column rra" in said(*embed, out, "--columns", "rra")
    assert "has no split 'test'" in said(*embed, out, "--split", "test")
    out.write_bytes(b"mine")
    assert "this command did not make it" in said(*embed, out)
    assert out.read_bytes() == b"mine"
    sheet = tmp_path / "s.png"
    assert "got 'xyz', which 0 of them have" in said(
        "neighbors", table, galaxies, sheet, "--of", "xyz"
    )
    assert "run 'mstrain embed' first" in said(
        "neighbors", tmp_path / "no", galaxies, sheet, "--of", "1"
    )
    predictions = tmp_path / "p.parquet"
    mstrain.predict(weighted_run, galaxies, predictions, split="val", is_quiet=True)
    with pytest.raises(UsageError, match=r"is not a table of embeddings: .*embedding_layer"):
        read_embeddings(predictions)
    table_bytes = bytearray(table.read_bytes())
    table_bytes[len(table_bytes) // 3] ^= 255
    (tmp_path / "bad.parquet").write_bytes(table_bytes)
    assert main(["neighbors", str(tmp_path / "bad.parquet"), str(galaxies), str(sheet), "--of=0"])
    assert not sheet.exists()
