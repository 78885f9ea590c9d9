"""`mstrain train auto`: any images and redshifts are trained, evaluated and predicted at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packing
import pytest
import raw_dataset

import msdata
import mstrain
import mstrain.cli
from msdata.augment.statistics import FILE_NAME, read_statistics
from msdata.errors import UsageError
from msdata.schema import Schema, Survey
from mstrain.evaluation.predictions import read_predictions

Packed = Callable[..., Path]
NUM_GALAXIES = 48


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> Path:
    """Images of 3 x 32 x 32 bytes as Galaxy10 has them, redshifts, and no E(B-V)."""
    folder = tmp_path_factory.mktemp("galaxy10")
    rng = np.random.default_rng(1)
    rows = ["object_id,redshift,morphology"]
    for number in range(NUM_GALAXIES):
        level = number % 20
        image = rng.integers(20, 30 + 8 * level, (3, 32, 32)).astype(np.uint8)
        packing.write_object(folder / "objects" / f"g{number:03d}.pkl", {"image": image})
        rows.append(f"g{number:03d},{0.011 + level / 100:.3f},{level % 3}")
    (folder / "catalog.csv").write_text("\n".join(rows) + "\n")
    return packed(folder, "--split", "0.6,0.2,0.2", "--jobs", "1")


def test_images_of_bytes_are_trained_evaluated_and_predicted_in_one_go(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "auto", str(galaxies), "--out", str(run), "epochs=1", "tensorboard=no"]
    assert mstrain.cli.main([*words, "compute.threads=1"]) == 0
    said = capsys.readouterr().err
    assert f"kept in {run / FILE_NAME}; 'msdata stats {galaxies}' measures more" in said
    found = json.loads((run / "config.json").read_text())["config"]
    assert found["recipe"] == "auto"
    assert found["model"]["ebv_column"] is None
    assert found["augment"]["crops"] == {"image": 32}
    assert not (galaxies / FILE_NAME).exists()
    result = mstrain.evaluate(run, galaxies, device="cpu", is_quiet=True, has_report=False)
    assert 0 < result.summary.points["z_mean"]["nmad"].value < 0.2
    out = mstrain.predict(run, galaxies, tmp_path / "p.parquet", device="cpu", is_quiet=True)
    assert len(out) == NUM_GALAXIES
    assert read_predictions(tmp_path / "p.parquet").edges[-1] == found["model"]["z_max"] == 0.25
    # Finished: the same command has nothing to do, with the run's own statistics.
    before = read_statistics(run)
    assert mstrain.cli.main([*words, "compute.threads=1"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert read_statistics(run) == before


def made(folder: Path, surveys: list[Survey], num_samples: int = 12, **columns: list) -> Path:
    """A data set of blank images with columns."""
    import pyarrow as pa

    schema = Schema(name="inferred", arrays=tuple(surveys))
    besides = {name: pa.array(values) for name, values in columns.items()}
    return raw_dataset.write_raw(
        folder / "data", schema, [num_samples], has_checksums=True, columns_besides=besides
    )


def test_each_choice_follows_the_schema(tmp_path: Path) -> None:
    wide = Survey(name="wide", shape=(1, 170, 170), pixel_scale_arcsec=0.25)
    coarse = Survey(name="coarse", shape=(2, 32, 32), pixel_scale_arcsec=2.75)
    unknown = Survey(name="unknown", shape=(2, 40, 44))
    z = [0.1] * 11 + [1.31]
    one = mstrain.auto(msdata.open(made(tmp_path / "one", [wide], redshift=z)))
    assert (one.augment.fusion, one.augment.rotation, one.augment.output_size) == (
        *("early", "any", 120),
    )
    assert one.model.z_max == 1.35
    assert one.loss.label_width == pytest.approx(1.35 / one.model.num_bins)
    sky = mstrain.auto(msdata.open(made(tmp_path / "sky", [coarse, wide], redshift=z)))
    assert sky.augment.fusion == "early"
    own = mstrain.auto(msdata.open(made(tmp_path / "own", [wide, unknown], redshift=z)), 3)
    assert own.augment.fusion == "late"
    assert own.batch_size % 3 == 0
    small = mstrain.auto(msdata.open(made(tmp_path / "small", [unknown], redshift=z)))
    assert (small.augment.rotation, small.augment.output_size) == ("exact", 40)


def test_reddening_is_joined_where_every_sample_has_a_plausible_one(tmp_path: Path) -> None:
    image, z = [Survey(name="image", shape=(1, 8, 8))], [0.1] * 12
    good = made(tmp_path / "good", image, redshift=z, ebv_csfd=[0.02] * 12)
    assert mstrain.auto(msdata.open(good)).model.ebv_column == "ebv_csfd"
    for name, odd in (("marked", -999.0), ("missing", None)):
        bad = made(tmp_path / name, image, redshift=z, ebv_csfd=[0.02] * 11 + [odd])
        assert mstrain.auto(msdata.open(bad)).model.ebv_column is None


def test_what_nothing_fits_is_refused_with_what_was_found(tmp_path: Path) -> None:
    image = [Survey(name="image", shape=(1, 8, 8))]
    packing.write_object(tmp_path / "source" / "a.pkl", {"image": np.ones((1, 8, 8), np.float32)})
    none = tmp_path / "none"
    assert (
        packing.pack(tmp_path / "source", none, "--unlabelled", "--split", "1,0,0").returncode == 0
    )
    with pytest.raises(UsageError, match="has no column 'redshift' to learn; pack it with"):
        mstrain.auto(msdata.open(none))
    nothing = made(tmp_path / "nan", image, redshift=[float("nan")] * 12)
    with pytest.raises(UsageError, match=r"no sample of split 'train' .* has a redshift >= 0"):
        mstrain.auto(msdata.open(nothing))
    curve = made(tmp_path / "curve", [Survey(name="curve", shape=(8,))], redshift=[0.1] * 12)
    with pytest.raises(UsageError, match="none of curve is an image"):
        mstrain.auto(msdata.open(curve))
