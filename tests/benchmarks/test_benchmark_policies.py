"""The study of policies: its data sets hold the same samples, and it is a spec of `mstrain`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import msdata
from benchmarks.__main__ import main
from benchmarks.questions import policies
from benchmarks.questions.policies_data import (
    BY_REDSHIFT,
    RANDOM,
    SIZE,
    Stamps,
    make_stamps,
    pack_both,
    stamps_of,
)
from benchmarks.report import page, read_results
from msdata.errors import UsageError
from mstrain.study.spec import configs_of, read_spec

NUM_OBJECTS = 600


def make_test_stamps(num: int = NUM_OBJECTS) -> Stamps:
    """Flat stamps whose brightness tells their redshift, with noise."""
    random = np.random.default_rng(0)
    redshift = random.uniform(0.02, 1.5, num)
    images = random.normal(0, 1, (num, 9, SIZE, SIZE)).astype(np.float32)
    images += (10 * redshift)[:, None, None, None].astype(np.float32)
    return stamps_of(images, redshift, random.uniform(0, 0.1, num))


def test_both_packs_hold_the_same_samples_and_one_is_in_order_of_redshift(tmp_path: Path) -> None:
    pack_both(make_test_stamps(), tmp_path, seed=3, num_shards=8)
    found = {n: msdata.open(tmp_path / n) for n in (RANDOM, BY_REDSHIFT)}
    for split in ("train", "test"):
        one, other = (found[n].split(split) for n in (RANDOM, BY_REDSHIFT))
        assert sorted(one.numbers("object")) == sorted(other.numbers("object"))
        assert (np.diff(other.numbers("redshift")) >= 0).all()
        assert (np.diff(one.numbers("redshift")) < 0).mean() > 0.4
        stamps = make_test_stamps()
        for data in (one, other):
            for row in (0, len(data) - 1):
                number = int(data.numbers("object")[row])
                np.testing.assert_array_equal(data[row]["image"], stamps["image"][number])
                assert data.numbers("redshift")[row] == stamps["redshift"][number]
    assert len(found[BY_REDSHIFT].split("train").shard_sizes) >= 6


def test_the_spec_compares_each_order_with_shuffle_of_the_same_norm(tmp_path: Path) -> None:
    spec = read_spec(policies.SPECS / "policies.toml")
    configs = configs_of(spec, tmp_path)
    assert spec.ranks == 4
    for arm in spec.compared:
        one, other = configs[arm.name], configs[spec.reference_of(arm)]
        assert other.data.policy == "shuffle"
        assert one.model == other.model
        assert one.data != other.data
    assert [a.name for a in spec.arms if a.control] == [
        a.name for a in spec.arms if a.data.endswith("redshift")
    ]


def test_a_study_ends_with_a_report_and_resumes_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = (policies.SPECS / "policies.toml").read_text()
    head, *arms = spec.split("[[arms]]")
    kept = [a for a in arms if '"shuffle"' in a.partition("data")[0] or "block-64-red" in a]
    small = tmp_path / "policies.toml"
    small.write_text("[[arms]]".join([head.replace("epochs=4", "epochs=1"), *kept]))
    monkeypatch.setattr(policies, "SPECS", tmp_path)
    monkeypatch.setattr(policies, "make_stamps", lambda *given: [make_test_stamps(240)])
    monkeypatch.setattr(policies, "_num_jobs", lambda: 1)
    out = tmp_path / "out"
    assert main(["policies", "--quick", "--out", str(out)]) == 0
    result = json.loads((out / "policies.json").read_text())
    cells = json.loads((out / "raw" / "policies.json").read_text())["cells"]
    assert len(cells) == 4
    assert set(result["study"]["arms"]) == {"shuffle", "block-64-redshift"}
    assert "Does an order made for the cache cost accuracy?" in page(read_results(out))
    assert len(result["shown"]["tables"]) == 4
    assert len(result["shown"]["charts"][0]["labels"]) == 1

    lost = next(out.glob("work/*/study/cells/shuffle-seed-1.json"))
    before = json.loads(lost.read_text())
    lost.unlink()
    assert main(["policies", "--quick", "--out", str(out)]) == 0
    # Trained again, to the same bits: seed, data and one thread settle everything.
    assert json.loads(lost.read_text()) == before


def test_data_without_the_surveys_are_refused(
    tiny_source: Path, packed: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match="makes its stamps of panstarrs, galex, unwise"):
        make_stamps(packed(tiny_source), 10, 1)


def test_too_few_objects_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--mock", "20", "--out", str(tmp_path)]) == 2
    assert "learns nothing from so few" in capsys.readouterr().err


def test_stamps_of_a_data_set_are_its_first_labelled_objects(galaxies: Path) -> None:
    (stamps,) = make_stamps(galaxies, 55, 1)
    assert stamps["image"].shape == (55, 9, SIZE, SIZE)
    train = np.sort(msdata.open(galaxies).split("train").numbers("redshift"))
    np.testing.assert_array_equal(np.sort(stamps["redshift"][: len(train)]), train)
    assert np.isfinite(stamps["image"]).all()


def test_arms_of_the_law_make_as_many_steps_on_fewer_samples(tmp_path: Path) -> None:
    configs = configs_of(read_spec(policies.SPECS / "law.toml"), tmp_path)
    assert {c.epochs * c.data.fraction for c in configs.values()} == {8}
    shares = [c.data.fraction for c in configs.values() if not c.data.label_noise]
    assert shares == [1 / 2**n for n in range(4)]
    np.save(tmp_path / "stamps.npy", make_test_stamps(240))
    for seed in (1, 0):
        policies.prepare_law(tmp_path, tmp_path / "data", seed)
        assert (tmp_path / "data").exists() == (seed == 0)
    assert len(msdata.open(tmp_path / "data").split("val")) > 3
