"""Studies: the same arm differs by exactly 0, a control is found, cells are trained once each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training

import msdata
import mstrain
from msdata.errors import UsageError
from mstrain.cli import main
from mstrain.config import TrainConfig
from mstrain.data.share import training_split
from mstrain.overrides import apply_overrides
from mstrain.study.section import page_of, sentences_of
from mstrain.study.spec import BUILT_IN, Spec, configs_of, read_spec
from mstrain.study.study import run_study

HEAD = """
title = "Same"
recipe = "demo"
reference = "one"
seeds = 2
"""
ARMS = {
    "one": "",
    "other": "",
    "noise": 'settings = ["data.label_noise=0.4"]\ncontrol = true\n',
}
SETTINGS = [f"{n}={v}" for n, v in {**training.SETTINGS, "epochs": "1"}.items()]


def write_spec(folder: Path, head: str = HEAD, **arms: str) -> Path:
    path = folder / "spec.toml"
    parts = [f'[[arms]]\nname = "{name}"\n{text}' for name, text in (arms or ARMS).items()]
    path.write_text(head + "\n".join(parts))
    return path


def num_train_of(data: Path) -> int:
    return len(msdata.open(data).split("train"))


class Stub:
    """Trains nothing: NMAD is 0.03 with a scatter of the seed, noise adds half of it."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, float]] = []

    def __call__(
        self, config: TrainConfig, data: msdata.Dataset, run: Path, spec: Spec
    ) -> tuple[int, Mapping[str, float]]:
        noise = config.data.label_noise
        self.trained.append((config.seed, noise))
        random = np.random.default_rng(config.seed)
        own = np.random.default_rng([config.seed, round(1000 * noise)])
        value = 0.03 * (1 + 0.1 * random.normal() + noise / 2 + 0.001 * own.normal())
        return 9, {"nmad": value, "crps": 2 * value, "loss": 10 * value}


def test_an_arm_that_is_the_reference_under_another_name_differs_by_exactly_0(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, HEAD + 'split = "val"\n', one="", other="")
    words = ["study", str(spec), str(galaxies), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, *SETTINGS]) == 0
    assert "other against one: identical: no value differs in any seed." in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "study.json").read_text())["study"]
    for effect in result["arms"]["other"]["effects"].values():
        assert effect["difference"] == effect["low"] == effect["high"] == 0.0
        assert effect["p_equivalence"] == 0
    seeds = {c["seed"]: c["metrics"]["nmad"] for c in result["cells"] if c["arm"] == "one"}
    assert seeds[0] != seeds[1]
    assert {c["num_train"] for c in result["cells"]} == {num_train_of(galaxies)}
    assert not list((tmp_path / "out" / "runs").iterdir())
    assert "identical: no value differs" in (tmp_path / "out" / "study.html").read_text()


@pytest.fixture
def study(galaxies: Path, tmp_path: Path):
    """Runs a study with a stub; gives what it says and what it trained."""

    def run(out: str = "out", path: Path | None = None, **options: Any):
        stub = options.pop("trainer", Stub())
        spec = path or write_spec(tmp_path)
        options = {"seeds": 6, "is_quiet": True, "has_report": False, **options}
        return run_study(spec, galaxies, tmp_path / out, trainer=stub, **options), stub

    return run


def test_a_control_is_found_and_a_study_that_misses_it_says_that_it_is_blind(
    study, tmp_path: Path
) -> None:
    found, _ = study()
    assert found.result["control"] is True
    assert found.result["arms"]["noise"]["verdict"] == "WORSE"
    effect = found.result["arms"]["noise"]["effects"]["nmad"]
    assert effect["difference"] == pytest.approx(0.2 * 0.03, rel=0.02)
    assert any(s.startswith("The control works") for s in sentences_of(found.result))
    weak = write_spec(tmp_path, one="", noise='settings = ["data.threads=1"]\ncontrol = true\n')
    blind, _ = study("blind", weak)
    assert blind.result["control"] is False
    assert any("could not have seen an effect" in s for s in sentences_of(blind.result))
    without, _ = study("without", write_spec(tmp_path, one="", other=""))
    assert without.result["control"] is None
    assert "identical: no value differs" in page_of(without.result)


def test_four_slices_train_the_same_cells_as_one_call_and_each_once(study) -> None:
    whole, stub = study("whole")
    sliced = Stub()
    for n in range(4):
        part, _ = study("sliced", part=f"{n}/4", trainer=sliced)
        assert part.result is None
    assert part.num_missing == 0
    assert sorted(sliced.trained) == sorted(stub.trained)
    read, again = study("sliced")
    assert again.trained == []
    assert read.result == whole.result


def test_a_later_call_trains_what_is_missing_and_more_seeds_take_a_study_further(study) -> None:
    part, first = study(part="1/3")
    assert part.num_missing == 12
    whole, rest = study()
    assert len(first.trained) + len(rest.trained) == 18
    assert not set(first.trained) & {t for t in rest.trained if t[1]}
    more, added = study(seeds=7)
    assert {seed for seed, _ in added.trained} == {6}
    assert more.num_cells == 21
    assert whole.result["arms"]["one"]["mean"] != more.result["arms"]["one"]["mean"]


def test_a_cell_whose_training_was_killed_is_trained_and_counted_once(study) -> None:
    class Killed(Stub):
        def __call__(self, *given: Any) -> tuple[int, Mapping[str, float]]:
            if len(self.trained) == 4:
                raise KeyboardInterrupt
            return super().__call__(*given)

    with pytest.raises(KeyboardInterrupt):
        study(trainer=Killed())
    found, stub = study()
    assert len(stub.trained) == 18 - 4
    assert found.result == study("unbroken")[0].result


def test_a_killed_training_resumes_from_its_checkpoint(
    galaxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mstrain.study import cells

    spec = write_spec(tmp_path, HEAD.replace("seeds", 'split = "val"\nseeds'), one="", other="")
    options: dict[str, Any] = {"settings": SETTINGS, "is_quiet": True, "has_report": False}

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cells, "evaluate_on_ranks", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(spec, galaxies, tmp_path / "out", **options)
    run = tmp_path / "out" / "runs" / "one-seed-0"
    assert (run / "checkpoints" / "last").exists()
    monkeypatch.setattr("mstrain.training.trainer.Trainer._train_epoch", killed)
    # The killed training needs no further step; the next cell does.
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, galaxies, tmp_path / "out", **options)
    assert [p.name for p in (tmp_path / "out" / "cells").iterdir()] == ["one-seed-0.json"]


@pytest.mark.parametrize(
    ("more", "arms", "says"),
    [
        ("", {"one": "", "b": 'settings=["epoch=3"]'}, "arm 'b': unknown setting 'epoch'; did"),
        ("", {"one": "", "b": 'settings=["seed=3"]'}, "arm 'b' must not set its seed"),
        ("", {"one": "", "one ": ""}, "an arm's name must be letters"),
        ("", {"one": ""}, "must have 2 to 100 arms, got 1"),
        ("", {"two": "", "three": ""}, "reference must be one of two, three, got 'one'"),
        ("", {"one": 'reference = "b"', "b": ""}, "arm 'b' is a reference and cannot have another"),
        ("", {"one": "", "b": 'data = "../x"'}, "must lie within DATA, got '../x'"),
        ("", {"one": "", "b": "sets = []"}, r"arms\[1\].sets must be left out"),
        ('metrics = ["nmda"]', {}, "metrics must be different ones of nmad, .*, got 'nmda'"),
        ('metrics = ["error_rate"]', {}, "must be of crps, loss, nmad, got error_rate"),
        ("margin = 0", {}, "margin must be > 0 and < 1"),
        ("law = true", {}, "a law needs arms of at least 3 numbers of training samples, got 1"),
        ("title = 3 = 4", {}, "is not TOML"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_sentence(
    more: str, arms: dict[str, str], says: str, study, tmp_path: Path
) -> None:
    path = write_spec(tmp_path, f"{HEAD}{more}\n", **arms)
    with pytest.raises(UsageError, match=says) as caught:
        study(path=path, seeds=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="seeds must be 2 to 1000, got 1: one pair has no"):
        study(seeds=1)


def test_an_arm_given_twice_and_a_spec_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    path = write_spec(tmp_path)
    path.write_text(path.read_text() + '[[arms]]\nname = "one"\n')
    with pytest.raises(UsageError, match="arm 'one' is given twice"):
        read_spec(path)
    with pytest.raises(UsageError, match=r"spec ordre is not a file; .*known names are .*order"):
        read_spec("ordre")


def test_cells_of_another_spec_or_other_data_are_not_taken_up(study, tmp_path: Path) -> None:
    study()
    with pytest.raises(UsageError, match=r"trained with epochs=30, the spec now says 4; give the"):
        study(settings=["epochs=4"])
    cell = tmp_path / "out" / "cells" / "one-seed-0.json"
    saved = json.loads(cell.read_text())
    cell.write_text(json.dumps({**saved, "fingerprint": "0" * 16}))
    with pytest.raises(UsageError, match="is of fingerprint 0000000000000000, this study of"):
        study()
    # What is only read may change.
    cell.write_text(json.dumps(saved))
    found, stub = study(path=write_spec(tmp_path, HEAD + "margin = 0.9\n"))
    assert stub.trained == []
    assert found.result["arms"]["other"]["effects"]["nmad"]["margin"] > 0.02


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n != "quantise"])
def test_specs_that_come_with_mstrain_are_valid_and_their_controls_are_of_their_reference(
    name: str, galaxies: Path
) -> None:
    spec = read_spec(name)
    configs = configs_of(spec, galaxies)
    assert any(arm.control for arm in spec.arms)
    for arm in spec.compared:
        assert configs[arm.name] != configs[spec.reference_of(arm)]


def test_list_names_every_spec(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "--list"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in BUILT_IN)
    assert callable(mstrain.study)


def make_config(**settings: float) -> TrainConfig:
    return apply_overrides(
        mstrain.RECIPES["demo"](), [f"data.{n}={v}" for n, v in settings.items()]
    )


def test_smaller_fractions_are_parts_of_larger_ones_and_noise_exchanges_labels(
    galaxies: Path,
) -> None:
    data = msdata.open(galaxies)
    whole = data.split("train")
    ids = {}
    for share in (1.0, 0.5, 0.25):
        split = training_split(data, make_config(fraction=share))
        assert len(split) == round(num_train_of(galaxies) * share)
        ids[share] = set(split.table(["sample_id"]).column(0).to_pylist())
    assert ids[0.25] < ids[0.5] < ids[1.0]
    noisy = training_split(data, make_config(fraction=0.5, label_noise=0.5))
    clean = training_split(data, make_config(fraction=0.5))
    changed = noisy.numbers("redshift") != clean.numbers("redshift")
    assert 10 <= changed.sum() <= 13
    assert sorted(noisy.numbers("redshift")) == sorted(clean.numbers("redshift"))
    assert noisy.name != clean.name != whole.name
    np.testing.assert_array_equal(noisy.numbers("ebv_csfd"), clean.numbers("ebv_csfd"))
    row = int(np.flatnonzero(changed)[0])
    assert noisy[row]["redshift"] == noisy.numbers("redshift")[row]
    assert noisy.sample_id(row) == clean.sample_id(row)
    with pytest.raises(UsageError, match="are fewer than two, which cannot be exchanged"):
        training_split(data, make_config(label_noise=0.001))
    with pytest.raises(UsageError, match=r"data.fraction must be <= 1, got 2.0"):
        make_config(fraction=2)


def test_a_loader_hands_out_a_part_of_a_split_with_its_exchanged_labels(galaxies: Path) -> None:
    data = msdata.open(galaxies)
    noisy = training_split(data, make_config(fraction=0.5, label_noise=0.5))
    wanted = dict(
        zip(
            noisy.table(["sample_id"]).column(0).to_pylist(),
            noisy.numbers("redshift"),
            strict=True,
        )
    )
    found = {}
    with msdata.Loader(noisy, 4, columns=["sample_id", "redshift"], threads=1) as loader:
        for batch in loader:
            found |= dict(zip(batch["sample_id"].tolist(), batch["redshift"], strict=True))
        state = loader.state_dict()
    assert found == wanted
    with (
        msdata.Loader(data.split("train"), 4, threads=1) as other,
        pytest.raises(UsageError, match="saved with split 'train-part-"),
    ):
        other.load_state_dict(state)
