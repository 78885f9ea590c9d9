"""Attribution: the kernel against autograd and retraining, tables, ranks of suspects, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import training
from torch import nn
from torch.nn.functional import cross_entropy

import msdata
import mstrain
from msdata.core.output_file import PNG_MARK
from msdata.errors import UsageError
from mstrain.attribution.last_layer import (
    check_head,
    kernel_block,
    residuals,
    self_influence,
    strongest,
)
from mstrain.attribution.results import ranks_of
from mstrain.cli import main
from mstrain.config import DataConfig, LossConfig
from mstrain.data.left_out import fold_of, left_out
from mstrain.embedding.embeddings import read_embeddings
from mstrain.evaluation.run_info import open_run
from mstrain.models.loss import BinLoss
from mstrain.network_config import ModelConfig


@pytest.fixture(scope="module")
def folds(galaxies: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, each without a fold."""
    runs = [tmp_path_factory.mktemp("folds") / f"fold-{n}" for n in range(2)]
    for number, run in enumerate(runs):
        words = training.words_of(galaxies, run, epochs=1, data__fold=f"{number}/2")
        assert main(words) == 0
    return runs


@pytest.fixture(scope="module")
def attributed(
    weighted_run: Path, folds: list[Path], galaxies: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out, opened = tmp_path_factory.mktemp("attributed") / "new", []
    with pytest.MonkeyPatch.context() as patch:
        name = "mstrain.attribution.attribute.open_run"
        patch.setattr(name, lambda run, which: opened.append(run) or open_run(run, which))
        found = mstrain.attribute(
            weighted_run, galaxies, out, out_of_fold=folds, top=7, device="cpu", is_quiet=True
        )
    # Each run once.
    assert opened == [weighted_run, *folds]
    assert (found.num_samples, found.num_unlabeled, found.ranked_by) == (49, 0, "oof_margin")
    return out


def columns_of(out: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(out / "attribution.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return columns | {"residual": np.stack(table["residual"].to_pylist())}


@pytest.mark.parametrize(("width", "smoothing"), [(0.0, 0.0), (0.05, 0.1)])
def test_the_kernel_is_the_product_of_autograds_gradients(width: float, smoothing: float) -> None:
    torch.manual_seed(0)
    model = ModelConfig(num_bins=9, z_max=1.0)
    loss = BinLoss(LossConfig(label_width=width, label_smoothing=smoothing), model)
    head = nn.Linear(6, 9).double()
    h, z = torch.randn(12, 6).double(), torch.rand(12).double()
    r = residuals(head(h), z, loss, model).detach()
    gradients = []
    for n in range(12):
        head.zero_grad()
        cross_entropy(head(h[n : n + 1]), loss.targets(z[n : n + 1]).double()).backward()
        gradients.append(torch.cat([head.weight.grad.ravel(), head.bias.grad]))
    wanted = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(kernel_block(r, h, r, h), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(self_influence(r, h), wanted.diagonal(), rtol=1e-6, atol=1e-6)
    # What the loss itself compares with is the same distribution.
    summed, count = loss(head(h), z)
    plain = cross_entropy(head(h), loss.targets(z).double())
    torch.testing.assert_close(summed / count, plain.float(), rtol=1e-5, atol=1e-6)
    # Without a label nothing is learned; the mode stands in where it is asked for.
    unknown = torch.full((12,), torch.nan).double()
    assert not residuals(head(h), unknown, loss, model).any()
    stand_in = residuals(head(h), unknown, loss, model, has_stand_in=True)
    mode = head(h).argmax(dim=1)
    assert (stand_in.gather(1, mode[:, None]) < 0).all()


def fitted(h: torch.Tensor, y: torch.Tensor, ridge: float) -> nn.Linear:
    """The head with the least sum of cross-entropies plus ridge / 2 times its squared weights."""
    head = nn.Linear(h.shape[1], 4).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    newton = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        newton.zero_grad()
        squares = sum(p.square().sum() for p in head.parameters())
        value = cross_entropy(head(h), y, reduction="sum") + ridge / 2 * squares
        value.backward()
        return value

    newton.step(closure)
    return head


def test_the_kernel_tells_what_retraining_without_an_object_does() -> None:
    torch.manual_seed(1)
    h, y = torch.randn(40, 5).double(), torch.randint(0, 4, (40,))
    y = torch.where(h[:, 0] > 0.5, 0, y)
    tested, label = torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    ridge = 40.0
    head = fitted(h, y, ridge)
    with torch.no_grad():
        one_hot = [torch.nn.functional.one_hot(v, 4).double() for v in (y, label)]
        r = torch.softmax(head(h), 1) - one_hot[0]
        kernel = kernel_block(torch.softmax(head(tested), 1) - one_hot[1], tested, r, h)
        before = cross_entropy(head(tested), label, reduction="none")
    changes = []
    for n in range(40):
        rest = torch.arange(40) != n
        with torch.no_grad():
            again = fitted_loss(h[rest], y[rest], ridge, tested, label)
            changes.append(again - before)
    change = torch.stack(changes, dim=1)
    # An object that argues for a label: without it the loss is larger, by about K / ridge.
    for wanted, found in zip(change, kernel, strict=True):
        assert np.corrcoef(wanted, found)[0, 1] > 0.95
    assert float((kernel.ravel() @ change.ravel()) / kernel.square().sum() * ridge) == (
        pytest.approx(1, abs=0.35)
    )


def fitted_loss(
    h: torch.Tensor, y: torch.Tensor, ridge: float, tested: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    with torch.enable_grad():
        head = fitted(h, y, ridge)
    return cross_entropy(head(tested), label, reduction="none")


def test_strongest_are_those_of_the_whole_kernel_in_any_blocks(monkeypatch) -> None:
    monkeypatch.setattr("mstrain.attribution.last_layer._BLOCK", 16)
    random = np.random.default_rng(0)
    r, h = random.normal(size=(50, 4)).astype(np.float16), random.normal(size=(50, 3))
    h = h.astype(np.float32)
    parts = [(r[:20], h[:20]), (r[20:21], h[20:21]), (r[21:], h[21:])]
    value, row = strongest((r[[7, 3]], h[[7, 3]]), parts, np.array([7, -1]), 4)
    r32 = r.astype(np.float32)
    whole = (r32[[7, 3]] @ r32.T) * (h[[7, 3]] @ h.T + 1)
    whole[0, 7] = 0
    order = np.argsort(-whole, axis=1)
    np.testing.assert_array_equal(row[0], order[:, :4])
    np.testing.assert_array_equal(row[1], order[:, :-5:-1])
    np.testing.assert_allclose(value[1], np.sort(whole, axis=1)[:, :4], rtol=1e-5)
    few, rows = strongest((r[:1], h[:1]), [(r[:2], h[:2])], np.array([0]), 9)
    assert np.isfinite(few).sum() == (rows >= 0).sum() == 1


def test_tables_hold_the_losses_of_predictions_and_the_gradients_of_the_head(
    attributed: Path, weighted_run: Path, galaxies: Path, tmp_path: Path
) -> None:
    found, data = columns_of(attributed), msdata.open(galaxies)
    ids = data.split("train").table(["sample_id"])["sample_id"].to_pylist()
    assert found["sample_id"].tolist() == ids
    out = tmp_path / "hidden.parquet"
    mstrain.embed(
        weighted_run, galaxies, out, layer="hidden", split="train", device="cpu", is_quiet=True
    )
    h = np.concatenate(list(read_embeddings(out).parts())).astype(np.float32)
    kept = np.stack(pq.read_table(attributed / "attribution-hidden.parquet")["hidden"].to_pylist())
    np.testing.assert_allclose(kept, h, rtol=1e-3, atol=1e-6)
    r = found["residual"].astype(np.float64)
    np.testing.assert_allclose(r.sum(axis=1), 0, atol=2e-3)
    expected = (r**2).sum(axis=1) * ((kept.astype(float) ** 2).sum(axis=1) + 1)
    np.testing.assert_allclose(found["self_influence"], expected, rtol=2e-3)
    predicted = mstrain.predict(
        *(weighted_run, galaxies, tmp_path / "p.parquet"),
        split="train",
        prior="as-trained",
        device="cpu",
        is_quiet=True,
    )
    width = 1.6 / 16
    np.testing.assert_allclose(
        found["loss"], -predicted.columns["log_likelihood"] - np.log(width), rtol=1e-4
    )
    density = np.concatenate(list(predicted.density_parts()))
    margin = np.log(density.max(axis=1) * width) + found["loss"]
    np.testing.assert_allclose(found["margin"], margin, atol=1e-4)
    for name in ("crps", "pit"):
        np.testing.assert_allclose(found[name], predicted.columns[name], rtol=1e-4, atol=1e-6)


def test_out_of_fold_losses_are_of_the_run_that_has_not_seen_the_object(
    attributed: Path, folds: list[Path], galaxies: Path, tmp_path: Path
) -> None:
    found = columns_of(attributed)
    for number, run in enumerate(folds):
        predicted = mstrain.predict(
            *(run, galaxies, tmp_path / f"{number}.parquet"),
            split="train",
            device="cpu",
            is_quiet=True,
        )
        is_left = fold_of(found["sample_id"].tolist(), 2) == number
        assert 10 < is_left.sum() < 40
        for name in ("crps", "pit"):
            np.testing.assert_allclose(
                found[f"oof_{name}"][is_left],
                predicted.columns[name][is_left],
                rtol=1e-4,
                atol=1e-6,
            )
    rank = found["suspicion_rank"]
    assert sorted(rank) == list(range(1, 50))
    assert rank[np.argmax(found["oof_margin"])] == 1
    assert np.isnan(ranks_of(np.array([1.0, np.nan, 3.0]))).tolist() == [False, True, False]


def test_suspects_are_a_list_to_train_without_and_arguments_are_drawn(
    attributed: Path, weighted_run: Path, galaxies: Path, tmp_path: Path, capsys
) -> None:
    found = columns_of(attributed)
    worst = found["sample_id"][np.argsort(found["suspicion_rank"])][:7].tolist()
    lines = (attributed / "suspects.csv").read_text().splitlines()
    head = lines[0].replace('"', "")
    assert head.startswith("sample_id,redshift,suspicion_rank,estimate,loss,margin,self_influence")
    assert [line.split(",")[0].strip('"') for line in lines[1:]] == worst
    data = msdata.open(galaxies)
    config = DataConfig(without=str(attributed / "suspects.csv"))
    mask = left_out(data.split("train"), config).mask
    assert set(found["sample_id"][mask]) == set(worst)
    asked = [data.split("val").sample_id(0), worst[0]]
    words = ["attribute", str(weighted_run), str(galaxies), "--out", str(tmp_path / "out")]
    words += ["--for", ",".join(asked), "--top", "2", "--quiet", "--device", "cpu"]
    assert main([*words, "--self", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ranked_by"] == "self_influence"
    assert {a["sample_id"] for a in said["arguments"]} == set(asked)
    assert all(a["training_id"] != a["sample_id"] for a in said["arguments"])
    assert all((a["kernel"] > 0) == (a["argues"] == "for") for a in said["arguments"])
    for path in said["sheets"]:
        assert PNG_MARK in Path(path).read_bytes()
    # A second run replaces what the first has made.
    mstrain.attribute(
        *(weighted_run, galaxies, tmp_path / "out"),
        asked=asked[:1],
        by_self=True,
        top=1,
        device="cpu",
        is_quiet=True,
    )
    again = columns_of(tmp_path / "out")
    first = int(np.argmax(again["self_influence"]))
    assert again["sample_id"][first] == said["suspects"][0]["sample_id"]


def test_two_ranks_give_the_tables_of_one(
    attributed: Path,
    weighted_run: Path,
    folds: list[Path],
    galaxies: Path,
    ranks: training.Ranks,
    tmp_path: Path,
) -> None:
    words = ["attribute", str(weighted_run), str(galaxies), "--out", str(tmp_path), "--quiet"]
    words += ["--batch-size", "7", "--out-of-fold", *map(str, folds)]
    ranks.run([*words, "--for", msdata.open(galaxies).split("val").sample_id(1)], 2)
    found, expected = columns_of(tmp_path), columns_of(attributed)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values)


def test_what_cannot_be_attributed_is_refused(
    weighted_run: Path, folds: list[Path], galaxies: Path, tmp_path: Path, capsys
) -> None:
    def said(*words: object) -> str:
        command = ["attribute", weighted_run, galaxies, "--out", tmp_path / "out", *words]
        assert main([str(word) for word in command]) == 2
        return capsys.readouterr().err

    assert "must name a run for each of 0/2, 1/2 once, got 0/2; missing: 1/2" in said(
        "--out-of-fold", folds[0]
    )
    assert "with a data.fold, got" in said("--out-of-fold", weighted_run)
    assert "has no sample nobody" in said("--for", "nobody")
    assert "--top" in said("--top", "0")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "suspects.csv").write_text("my own\n")
    assert "this command did not make it" in said()
    with pytest.raises(UsageError, match="a linear layer and a softmax over bins, got Linear"):
        check_head(SimpleNamespace(head=nn.Linear(2, 2)), SimpleNamespace(path="RUN"))  # type: ignore[arg-type]
