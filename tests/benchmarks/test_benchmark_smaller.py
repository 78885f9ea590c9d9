"""The question of coded samples: sizes, errors, rates, and a study that sees harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdata
from benchmarks.__main__ import main
from benchmarks.questions import smaller
from benchmarks.questions.policies import coded_spec, prepare_coded, steps_of
from benchmarks.questions.policies_data import SIZE, make_stamps, stamps_of
from benchmarks.questions.smaller import Form, measure_forms
from benchmarks.report import page
from benchmarks.workloads import Workload, write_source
from mstrain.study.study import read_together

FORMS = (Form(), Form(quantize=4.0), Form(quantize=4.0, compress="lz4"))
NUM_OBJECTS = 12


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two bands on a sky of zero, with a band that has no coverage."""
    workload = Workload(
        name="tiny",
        arrays={"image": ((2, 64, 64), "<f4")},
        num_samples=1,
        num_quick=1,
        batch_size=4,
    )
    random = np.random.default_rng(5)
    shape, dtype = workload.arrays["image"]
    arrays = [{"image": random.normal(0, 1, shape).astype(dtype)} for _ in range(NUM_OBJECTS)]
    arrays[3]["image"][1] = 0
    folder = tmp_path_factory.mktemp("smaller") / "source"
    return write_source(folder, iter(arrays)).objects


@pytest.fixture(scope="module")
def found(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was measured of three forms."""
    folder = tmp_path_factory.mktemp("forms")
    return measure_forms(objects, NUM_OBJECTS, folder, 1, FORMS)


def test_codes_of_noise_have_the_size_and_the_error_that_arithmetic_gives(
    found: list[dict[str, Any]],
) -> None:
    plain, codes, packed = found
    assert [form["title"] for form in found] == ["float32", "q = 4, codes alone", "q = 4, LZ4"]
    assert (plain["ratio"], codes["ratio"]) == (1.0, 2.0)
    # Four bits of noise per sigma / 4, of 32; LZ4 does not reach the entropy.
    assert 5 < packed["ratio"] < 8
    for form in (codes, packed):
        assert form["variance"] == pytest.approx(1, abs=0.02)
        assert 0.49 < form["worst"] <= 0.5001
        assert abs(form["bias"]) < 3 / np.sqrt(12 * NUM_OBJECTS * 2 * 64 * 64)
        assert form["same"]
    assert "variance" not in plain


def test_hits_grow_with_the_ratio_and_all_rates_are_ratios_of_the_same_turn(
    found: list[dict[str, Any]],
) -> None:
    # A fifth of the float32 data is 2.4 of 12 such samples, 4.8 of half the size; whole shards.
    held = [round(NUM_OBJECTS * form["hits"]) for form in found]
    assert held[0] == 2
    assert held[1] in (3, 4)
    assert held[2] == 12
    for form in found:
        assert form["hot_of_limit"]["median"] == pytest.approx(
            form["hot"]["median"] / form["limit"]["median"], rel=1e-3, abs=1e-4
        )
        assert form["pack_cpu_ms"]["median"] > 0
    assert found[0]["pack_of_float32"]["median"] == found[0]["cold_of_float32"]["median"] == 1


def make_study(harm: float) -> dict[str, Any]:
    random, spec = np.random.default_rng(2), coded_spec()
    cells = []
    for arm, seed in spec.cells:
        value = 0.03 * (1 + (harm if arm.control else 0)) + 3e-4 * random.normal()
        metrics = dict.fromkeys(spec.metrics, value)
        cells.append({"arm": arm.name, "seed": seed, "num_train": 9, "num_test": 5})
        cells[-1]["metrics"] = metrics
    return read_together(spec, cells)


def test_the_report_says_whether_the_control_harms_and_draws_every_chart(
    found: list[dict[str, Any]],
) -> None:
    shown = smaller.show({"forms": found, "study": make_study(0.3)})
    blind = smaller.show({"forms": found, "study": make_study(0.0)})
    assert "The control works: the study sees the harm of q = 0.05." in shown.sentences
    assert any(s.startswith("q = 4 against float32: ") for s in shown.sentences)
    assert any(s.startswith("THE CONTROL FAILED") for s in blind.sentences)
    assert any(s.startswith("q = 4, LZ4: ") for s in shown.sentences)
    facts = {"command": "", "finished": "", "commit": "", "versions": {}, "quick": True}
    host = {"processor": "", "cores": 2, "memory_gib": 1, "kernel": "", "load_average": 0}
    text = page([{**facts, "host": host, "shown": shown.to_json()}])
    assert text.count('<svg class="chart"') == 3
    fault = smaller.show(
        {"forms": [found[0], {**found[1], "same": False}], "study": make_study(0.3)}
    )
    assert any("FAULT: zeros or unquantized pixels were changed" in s for s in fault.sentences)


def test_the_arms_of_a_seed_train_on_the_same_objects_of_other_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.normal(0, 1, (240, 9, SIZE, SIZE)).astype(np.float32)
    redshift, ebv = random.uniform(0.02, 1.5, 240), random.uniform(0, 0.1, 240)
    names = steps_of(coded_spec())
    assert tuple(names) == ("float32", "q16", "q4", "q0.05")
    for number, name in enumerate(names):
        stamps = stamps_of(images + np.float32(number), redshift, ebv)
        np.save(tmp_path / f"{name}.npy", stamps)
    prepare_coded(names, tmp_path, tmp_path / "data", 1)
    splits = [msdata.open(tmp_path / "data" / "seed-1" / name).split("train") for name in names]
    for split in splits[1:]:
        assert split.numbers("object").tolist() == splits[0].numbers("object").tolist()
        assert split.shard_sizes.tolist() == splits[0].shard_sizes.tolist()
    pixels = [split[5]["image"] for split in splits]
    assert [float((p - pixels[0]).mean().round(3)) for p in pixels] == [0, 1, 2, 3]


def test_stamps_of_coarsely_quantized_cutouts_lose_what_finely_quantized_ones_keep() -> None:
    plain, fine, coarse = (s["image"] for s in make_stamps(None, 2, 1, (None, 4.0, 0.05)))
    assert 0 < (fine - plain).std() < 0.1 * plain.std()
    assert (coarse - plain).std() > 3 * (fine - plain).std()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mock", "50"], "--mock must be at least 200, got 50"),
        (["--workload", "stamps"], "--workload must be mantis, got 'stamps'"),
    ],
)
def test_questions_that_tell_nothing_are_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["smaller", "--out", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
