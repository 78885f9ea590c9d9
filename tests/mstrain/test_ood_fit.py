"""A flow's density against known ones, and fits that a run keeps, exports and predicts with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import training
from scipy.stats import chi2, norm

import mstrain
from msdata.errors import DataError, UsageError
from mstrain.cli import main
from mstrain.embedding import flow as flows
from mstrain.embedding.flow import fit_flow
from mstrain.embedding.ood_fit import read_fit, write_fit
from mstrain.embedding.outlying import sigma_of
from mstrain.models.model_file import OOD_NAME


def test_a_flow_tells_the_density_of_normal_numbers_and_the_sigma_of_a_radius(monkeypatch) -> None:
    monkeypatch.setattr(flows, "_TRANSFORMS", 1)
    monkeypatch.setattr(flows, "_MAX_STEPS", 250)
    random = np.random.default_rng(0)
    train, held, fresh = random.normal(size=(3, 4000, 2)).astype(np.float32)
    flow = fit_flow(train, held)
    truth = -(fresh**2).sum(axis=1) / 2 - np.log(2 * np.pi)
    assert np.corrcoef(flow.log_density(fresh), truth)[0, 1] > 0.99
    angle = np.linspace(0, 2 * np.pi, 60)
    for radius in (1.0, 1.5, 2.0, 2.5):
        ring = radius * np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
        sigma = sigma_of(-flow.log_density(ring), -flow.log_density(held))
        assert sigma.mean() == pytest.approx(norm.isf(chi2.sf(radius**2, 2)), abs=0.1)
    assert flow.log_density(np.full((1, 2), 1e30, np.float32)) == [-1e9]
    assert len(flow.log_density(fresh[:0])) == 0
    monkeypatch.setattr(flows, "_STEPS", 5)
    monkeypatch.setattr(flows, "_MAX_STEPS", 10)
    first, second, other = (fit_flow(train, held, seed=s).log_density(fresh) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.fixture(scope="module")
def kept(weighted_run: Path, galaxies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that keeps a fit on its pixels; beside it table and flags."""
    return training.run_with_fit(weighted_run, galaxies, tmp_path_factory.mktemp("kept"))


def predicted(run: Path, data: Path, out: Path, **options):
    return mstrain.predict(run, data, out, device="cpu", is_quiet=True, **options).columns


def test_predictions_have_the_flags_of_the_fit_that_run_and_model_file_keep(
    kept: Path, galaxies: Path, tmp_path: Path
) -> None:
    fit = read_fit(kept)
    assert fit is not None
    known = pq.read_table(kept.parent / "ood.parquet")
    found = predicted(kept, galaxies, tmp_path / "p.parquet", batch_size=60)
    assert found["sample_id"].tolist() == known["sample_id"].to_pylist()
    assert "is_flagged" not in found
    # Training objects are their own neighbors where only their embeddings are known.
    is_val = found["split"] == "val"
    for name in ("ood_distance", "ood_sigma"):
        np.testing.assert_allclose(found[name][is_val], known[name].to_numpy()[is_val], rtol=0.02)
    model = tmp_path / "MODEL.msz"
    assert OOD_NAME in mstrain.export(kept, model).companions
    again = predicted(model, galaxies, tmp_path / "p.parquet", split="val", batch_size=60)
    np.testing.assert_array_equal(again["ood_sigma"], found["ood_sigma"][is_val])
    bare = predicted(model, galaxies, tmp_path / "p.parquet", split="val", has_flags=False)
    assert "ood_sigma" not in bare


def test_a_placed_flag_and_a_flow_come_back_from_the_file(
    kept: Path, galaxies: Path, tmp_path: Path, monkeypatch
) -> None:
    fit = read_fit(kept)
    assert fit is not None
    before = (kept / OOD_NAME).read_bytes()
    monkeypatch.setattr(flows, "_STEPS", 2)
    monkeypatch.setattr(flows, "_MAX_STEPS", 2)
    monkeypatch.setattr(flows, "_TRANSFORMS", 1)
    flow = fit_flow(fit.reference, fit.reference[:20])
    odd = replace(fit, flow=flow, reference=fit.reference[:0], flag_sigma=-9.0)
    write_fit(kept, odd)
    found = predicted(kept, galaxies, tmp_path / "p.parquet", split="val")
    assert found["is_flagged"].dtype == bool
    assert found["is_flagged"].all()
    assert np.isfinite(found["ood_log_density"]).all()
    assert "ood_distance" not in found
    write_fit(kept, fit)
    assert (kept / OOD_NAME).read_bytes() == before


def test_fits_of_another_checkpoint_and_damaged_ones_are_refused(
    kept: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = read_fit(kept)
    assert fit is not None
    good = (kept / OOD_NAME).read_bytes()
    words = ["predict", str(kept), str(galaxies), str(tmp_path / "p.parquet"), "--quiet"]
    try:
        assert main([*words, "--columns", "ood_sigma"]) == 2
        assert "cannot take over the column 'ood_sigma'" in capsys.readouterr().err
        with pytest.raises(UsageError, match="--keep must be the run of the embeddings"):
            write_fit(kept, replace(fit, fitted_on=replace(fit.fitted_on, checkpoint_sha256="0")))
        with pytest.raises(UsageError, match="--keep must be the folder of a training"):
            write_fit(kept / OOD_NAME, fit)
        (kept / OOD_NAME).write_bytes(good[:-400] + b"x" + good[-399:])
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "ood.msz is corrupt: SHA-256" in said
        assert "run 'mstrain flag' with --keep again" in said
        write_wrong = replace(fit, k=len(fit.reference))
        (kept / OOD_NAME).unlink()
        write_fit(kept, write_wrong)
        with pytest.raises(DataError, match="k must be below the number of references"):
            read_fit(kept)
    finally:
        (kept / OOD_NAME).write_bytes(good)
    assert json.loads((kept.parent / "RUN" / "config.json").read_text())
