"""Training that starts from weights: what fits is loaded bit for bit, the rest is said."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from safetensors.torch import save_file

import mstrain
from msdata.errors import DataError, UsageError
from mstrain.cli import main
from mstrain.config import OptimConfig, TrainConfig
from mstrain.models.redshift_net import RedshiftNet
from mstrain.overrides import apply_overrides
from mstrain.training.checkpoint import checkpoint_path, read_checkpoint, read_config
from mstrain.training.initial_weights import Fit, load_weights, read_source, target_of
from mstrain.training.optim import make_optimizer, set_learning_rate

IMAGES = {"image": (9, 24, 24)}


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    """Settings of `weighted_run`, for one epoch more."""
    settings = {**training.SETTINGS, "epochs": "2", "scaling": "asinh"}
    settings |= {"loss.weighting": "inverse_count", "loss.weight_bins": "8"}
    return apply_overrides(mstrain.RECIPES["demo"](), [f"{n}={v}" for n, v in settings.items()])


def fresh(config: TrainConfig, shapes: Mapping[str, Any] = IMAGES) -> RedshiftNet:
    torch.manual_seed(5)
    return RedshiftNet(shapes, config.model)


def loaded(config: TrainConfig, source: Path) -> tuple[RedshiftNet, Fit]:
    model = fresh(config)
    return model.eval(), load_weights(model, read_source(source), target_of(config))


def sources(run: Path, folder: Path) -> list[Path]:
    """The run's weights in every form."""
    content = read_checkpoint(checkpoint_path(run, "best"))
    mstrain.export(run, folder / "MODEL.msz")
    weights = {name: tensor.contiguous() for name, tensor in content["average"].items()}
    save_file(weights, folder / "plain.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "wrapped.pth")
    return [
        *(run, folder / "MODEL.msz", folder / "plain.safetensors", folder / "wrapped.pth"),
        checkpoint_path(run, "best"),
    ]


def test_a_network_right_after_its_start_is_the_source_bit_for_bit(
    weighted_run: Path, config: TrainConfig, tmp_path: Path
) -> None:
    wanted, _ = mstrain.load_model(weighted_run)
    images, ebv = {"image": torch.randn(3, 9, 24, 24)}, torch.rand(3)
    for source in sources(weighted_run, tmp_path):
        model, fit = loaded(config, source)
        assert len(fit.loaded) == len(wanted.state_dict())
        assert (fit.fresh_head, fit.adapted, fit.reshaped, fit.absent, fit.unused) == (
            *("", [], [], []),
            [],
        )
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(model(images, ebv), wanted(images, ebv))
    assert not torch.equal(fresh(config).eval()(images, ebv), wanted(images, ebv))


def test_a_start_that_trains_nothing_has_the_metrics_of_its_source_bit_for_bit(
    galaxies: Path,
    weighted_run: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, kept = tmp_path / "run", replace(config, epochs=0)
    mstrain.train(kept, galaxies, out, init=weighted_run)
    assert capsys.readouterr().err.count("the network is kept as it is: validation loss ") == 1
    found, wanted = (
        mstrain.evaluate(
            run, galaxies, split="val", out=tmp_path / name, has_report=False, is_quiet=True
        ).summary
        for run, name in ((out, "kept"), (weighted_run, "source"))
    )
    assert found == wanted
    # The same again is finished; without a network to keep there is nothing to do.
    assert mstrain.train(kept, galaxies, out, init=weighted_run, is_quiet=True).num_steps == 0
    with pytest.raises(UsageError, match="epochs=0 keeps the network of --init as it is, and"):
        mstrain.train(kept, galaxies, tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "config.json").exists()


def test_the_example_trains_both_ways_with_the_same_seed(
    galaxies: Path, weighted_run: Path, config: TrainConfig, tmp_path: Path
) -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "start_from_weights.py"
    compare = runpy.run_path(str(path))["compare"]
    short = replace(config, epochs=1)
    (crps,) = compare(short, weighted_run, galaxies, tmp_path, [3], "val")
    assert set(crps) == {"scratch", "init"}
    kept = {name: read_config(tmp_path / f"{name}-3") for name in crps}
    assert kept["scratch"]["config"] == kept["init"]["config"]
    assert (kept["scratch"].get("init"), kept["init"]["init"]["path"]) == (None, str(weighted_run))


@pytest.mark.parametrize("now", [1, 9])
def test_a_stem_of_other_channels_answers_a_constant_image_alike(
    config: TrainConfig, tmp_path: Path, now: int
) -> None:
    before, after = fresh(config, {"image": (3, 24, 24)}), fresh(config, {"image": (now, 24, 24)})
    torch.save(before.state_dict(), tmp_path / "three.pt")
    fit = load_weights(after, read_source(tmp_path / "three.pt"), target_of(config))
    name = "encoders.image.stem.0.weight"
    assert fit.adapted == [(name, 3, now)]
    assert len(fit.loaded) == len(after.state_dict()) - 1
    image = torch.full((1, 1, 24, 24), 0.7)
    answers = [
        model.encoders["image"].stem[0](image.expand(-1, n, -1, -1))
        for model, n in ((before, 3), (after, now))
    ]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-6)
    assert answers[0].abs().max() > 0.1


def test_a_head_that_tells_something_else_stays_fresh(
    weighted_run: Path, config: TrainConfig, tmp_path: Path
) -> None:
    plain = sources(weighted_run, tmp_path)[2]
    for source, changes, says in (
        (weighted_run, {"z_max": 1.2}, "told redshift in [0, 1.6] in 16 bins; this one redshift"),
        (weighted_run, {"num_bins": 20}, "this one redshift in [0, 1.6] in 20 bins"),
        (plain, {"num_bins": 20}, "head.layers.2.weight has shape (16, 16) there, (20, 16) here"),
        (plain, {"hidden": 0}, ", which this one does not"),
    ):
        other = replace(config, model=replace(config.model, **changes))
        model, fit = loaded(other, source)
        assert says in fit.fresh_head
        for name, tensor in fresh(other).head.state_dict().items():
            assert torch.equal(model.head.state_dict()[name], tensor), name
        assert not any(name.startswith("head.") for name in fit.loaded)
    # By its shape alone a head of other redshifts cannot be told.
    _, fit = loaded(replace(config, model=replace(config.model, z_max=1.2)), plain)
    assert fit.fresh_head == ""


def test_weights_that_do_not_fit_are_counted_or_refused(
    weighted_run: Path, config: TrainConfig, tmp_path: Path
) -> None:
    deeper = replace(config, model=replace(config.model, depth=18))
    _, fit = loaded(deeper, weighted_run)
    assert len(fit.absent) == 4 * 12
    assert fit.absent[0].startswith("encoders.image.stages.0.1.branch.")
    torch.save(fresh(deeper).state_dict(), tmp_path / "deeper.pt")
    _, fit = loaded(config, tmp_path / "deeper.pt")
    assert len(fit.unused) == 4 * 12
    wider = replace(config, model=replace(config.model, width=12))
    says = r"no kernel of an encoder fits; the first is .* \(8, 9, 3, 3\), wanted .* \(12, 9"
    with pytest.raises(DataError, match=says):
        loaded(wider, weighted_run)
    broken = fresh(config).state_dict()
    broken["encoders.image.stages.0.0.branch.0.weight"][0, 0, 0, :2] = torch.nan
    torch.save(broken, tmp_path / "nan.pt")
    with pytest.raises(DataError, match=r"2 of 576 values of encoders.*\.weight are NaN"):
        loaded(config, tmp_path / "nan.pt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("evil"), "executed")


def test_a_file_of_a_stranger_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    torch.save({"a": 3, "b": torch.ones(1).expand(1 << 40)}, tmp_path / "none.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "words.txt").write_text("no weights")
    for name, kind, says in (
        ("evil.pt", DataError, "is corrupt or not a checkpoint"),
        ("none.pt", DataError, "holds no tensors by name"),
        ("cut.safetensors", DataError, "cannot be read"),
        ("words.txt", UsageError, "--init must be a run's folder, MODEL.msz"),
        ("missing.pt", UsageError, "does not exist; check the path"),
        (".", UsageError, "is not a run|has no best checkpoint"),
    ):
        with pytest.raises(kind, match=says):
            read_source(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_rates_fall_from_the_head_to_the_stem(config: TrainConfig) -> None:
    model = fresh(config)
    optimizer = make_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(rate)
    assert found["head.layers.0.weight"] == found["head.layers.2.bias"] == 0.8
    for stage, wanted in enumerate((0.05, 0.1, 0.2, 0.4)):
        assert found[f"encoders.image.stages.{stage}.0.branch.1.bias"] == wanted
    assert found["encoders.image.stem.0.weight"] == 0.025
    assert len(make_optimizer(model, OptimConfig()).param_groups) == 2


def test_a_run_says_and_keeps_what_it_started_from_and_resumes_without_it(
    galaxies: Path,
    weighted_run: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = shutil.copytree(weighted_run, tmp_path / "source"), tmp_path / "run"
    short = replace(config, epochs=1, model=replace(config.model, num_bins=20))
    mstrain.train(short, galaxies, out, init=source)
    said = capsys.readouterr().err
    for line in (
        f"started from {source} (sha256 ",
        "the head is left fresh: it told redshift in [0, 1.6] in 16 bins; this one",
        "pixels are scaled by statistics of the new data, not of the source's",
    ):
        assert said.count(line) == 1
    kept = read_config(out)["init"]
    assert kept["path"] == str(source)
    assert len(kept["sha256"]) == 64
    assert len(kept["loaded"]) == len(fresh(short).state_dict()) - 4
    # Of the same source, of none, and of one that is gone the run stays what it is.
    moved = shutil.copytree(source, tmp_path / "moved")
    for init in (source, moved, None):
        mstrain.train(short, galaxies, out, init=init)
    assert "started from" not in capsys.readouterr().err.replace("which", "")
    shutil.rmtree(source)
    mstrain.train(short, galaxies, out, init=source)
    assert "cannot be read now; a resume does not need it" in capsys.readouterr().err
    assert read_config(out)["init"] == kept
    with pytest.raises(UsageError, match=r"was started from .*source .*got --init .*weighted"):
        (moved / "checkpoints" / "best.pt").unlink()
        mstrain.train(short, galaxies, out, init=weighted_run.parent)
    with pytest.raises(UsageError, match="has a checkpoint and was not started from --init"):
        mstrain.train(
            replace(config, epochs=1), galaxies, shutil.copytree(weighted_run, source), init=out
        )


def test_layers_are_frozen_only_where_they_have_learned(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, says in (
        ({"freeze_epochs": 1}, "optim.freeze_epochs=1 needs --init"),
        ({"freeze_epochs": 9}, "optim.freeze_epochs must be <= epochs=3, got 9"),
        ({"layer_decay": 1.5}, "optim.layer_decay must be <= 1, got 1.5"),
    ):
        assert main(training.words_of(galaxies, tmp_path / "run", **settings)) == 2
        assert says in capsys.readouterr().err
    words = training.words_of(galaxies, tmp_path / "run")
    assert main([*words, "--init", str(tmp_path / "typo")]) == 2
    assert "typo does not exist; check the path" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("step", [3, 7])
def test_a_run_resumed_among_frozen_steps_or_after_ends_bit_for_bit_as_undisturbed(
    galaxies: Path, weighted_run: Path, config: TrainConfig, tmp_path: Path, step: int
) -> None:
    # Five steps per epoch; without an average, so that validation changes the layers' modes.
    optim = replace(config.optim, freeze_epochs=1, layer_decay=0.7, ema_decay=0.0)
    kept = replace(config.checkpoint, every_steps=1, keep=10)
    long = replace(config, optim=optim, checkpoint=kept)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    mstrain.train(long, galaxies, whole, init=weighted_run, is_quiet=True)
    shutil.copytree(whole, cut)
    for path in (cut / "checkpoints").iterdir():
        if path.name == "last" or path.stem > f"step-{step:08d}":
            path.unlink()
    mstrain.train(long, galaxies, cut, init=weighted_run, is_quiet=True)
    wanted, found = (read_checkpoint(checkpoint_path(out, "last")) for out in (whole, cut))
    assert wanted["progress"] == found["progress"]
    for name, tensor in wanted["model"].items():
        assert torch.equal(found["model"][name], tensor), name
    frozen = read_checkpoint(checkpoint_path(cut, "step-00000005"))["model"]
    start = mstrain.load_model(weighted_run)[0].state_dict()
    name = "encoders.image.stem.1.running_mean"
    assert torch.equal(frozen[name], start[name])
    assert not torch.equal(found["model"][name], start[name])
