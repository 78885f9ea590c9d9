"""Settings and recipes: read, checked, refused with a sentence."""

from __future__ import annotations

import json
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import msdata
from msdata.errors import UsageError
from msdata.topology import Topology
from mstrain.config import ComputeConfig, TrainConfig, batch_per_rank
from mstrain.data.batches import make_augmenter
from mstrain.distributed import LostRankError, Ranks, choose_device, joined_ranks, set_threads
from mstrain.overrides import apply_overrides, settings_of
from mstrain.recipes import RECIPES, find_recipe, for_ranks
from mstrain.training.run import _advice


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    config = find_recipe(name)
    assert config.recipe == name
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_recipes_are_what_their_names_say() -> None:
    found = {n: (c().model.depth, c().augment.fusion) for n, c in RECIPES.items()}
    assert found["resnet18_early"] == (18, "early")
    assert found["resnet50_early"] == (50, "early")
    assert found["resnet50_late"] == (50, "late")
    # Weights pay only if a paired study says so, with the prior put back.
    assert {make().loss.weighting for make in RECIPES.values()} == {"none"}


def test_every_setting_says_its_type() -> None:
    for kind in (TrainConfig, *(type(v) for v in vars(TrainConfig()).values() if is_dataclass(v))):
        assert get_type_hints(kind).keys() >= kind.__dataclass_fields__.keys()


def test_settings_are_read_by_the_type_of_what_they_replace() -> None:
    words = ["epochs=3", "learning_rate=1e-4", "model.norm=group", "compile=yes", "data.threads=2"]
    words += ["cache_gib=auto", "ebv_column=none", 'crops={"panstarrs": 60}', "batch_size=1e3"]
    words += ["compute.threads=auto", "augment.rotation=exact"]
    config = apply_overrides(find_recipe("demo"), words)
    assert (config.epochs, config.batch_size) == (3, 1000)
    assert config.optim.learning_rate == 1e-4
    assert config.model.norm == "group"
    assert config.compute.compile is True
    assert config.data.threads == 2
    assert config.data.cache_gib is None
    assert config.model.ebv_column is None
    assert config.compute.threads is None
    assert config.augment.rotation == "exact"
    assert dict(config.augment.crops) == {"panstarrs": 60}


def test_several_columns_of_reddening_take_the_place_of_one() -> None:
    two = apply_overrides(find_recipe("demo"), ['ebv_columns=["ebv_csfd", "ebv_planck"]'])
    assert (two.model.ebv_column, two.model.reddening) == (None, ("ebv_csfd", "ebv_planck"))
    assert type(two).from_dict(two.as_dict()) == two
    # One of them is the network of before, and configurations of before have no such setting.
    one = apply_overrides(find_recipe("demo"), ['ebv_columns=["ebv_csfd"]'])
    assert one == find_recipe("demo")
    before = one.as_dict()
    del before["model"]["ebv_columns"]
    assert type(one).from_dict(before) == one
    with pytest.raises(UsageError, match="got both: a, b and dust; name all in"):
        apply_overrides(find_recipe("demo"), ['ebv_columns=["a", "b"]', "ebv_column=dust"])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("epochs", "a setting must be key=value, such as epochs=10, got 'epochs'"),
        ("epoch=3", "unknown setting 'epoch'; did you mean epochs?"),
        ("optm.learning_rate=1", "did you mean optim.learning_rate?"),
        ("recipe=mine", "unknown setting 'recipe'"),
        ("xyzzy=1", "'mstrain train --settings' lists them"),
        ("every_steps=3", "may mean log.every_steps or checkpoint.every_steps"),
        ("epochs=many", "epochs=many cannot be read as int"),
        ("epochs=2.5", "epochs=2.5 cannot be read as int"),
        ("epochs=inf", "epochs=inf cannot be read as int"),
        ("epochs=-1", "epochs must be >= 0, got -1"),
        ("compile=perhaps", "compute.compile=perhaps cannot be read as bool"),
        ("data.threads=x", "data.threads=x cannot be read as int or none"),
        ("learning_rate=nan", "optim.learning_rate must be > 0, got nan"),
        ("ema_decay=1", "optim.ema_decay must be >= 0 and < 1, got 1.0"),
        ("depth=19", "model.depth must be one of 10, 18, 34, 50, got 19"),
        ("ebv_column=planted", "model.ebv_column must not hold the answer, got planted"),
        ("ebv_column=redshift_true", "model.ebv_column must not hold the answer"),
        ('ebv_columns=["ebv_csfd", "redshift"]', "model.ebv_columns must not hold the answer"),
        ('ebv_columns=["a", "a"]', "model.ebv_columns must be a list of different texts"),
        ("ebv_columns=5", "model.ebv_columns must be a list of different texts, got 5"),
        ("ebv_columns=ebv_csfd", "model.ebv_columns=ebv_csfd cannot be read; write JSON"),
        ("precision=double", "compute.precision must be one of float32, bf16, fp16, got double"),
        ("policy=random", "data.policy must be one of shuffle"),
        ("cache_ssd_gib=4", "an SSD tier needs both ssd_dir and ssd_gib, got None and 4.0"),
        ("rotation=left", "rotation must be one of any, exact, none, got 'left'"),
        ("crops={", "augment.crops={ cannot be read; write JSON"),
        ("surveys=galex", "write JSON, in quotes for the shell: 'augment.surveys=[\"galex\"]'"),
        ("learning_rate=inf", "optim.learning_rate must be > 0, got inf"),
        ("label_width=inf", "loss.label_width must be >= 0, got inf"),
        ("weight_decay=inf", "optim.weight_decay must be >= 0, got inf"),
        (
            "seed=1e30",
            "seed must be at most 9223372036854775807, got 1000000000000000019884624838656",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_a_sentence(word: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_overrides(find_recipe("demo"), [word])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_drawn_by_weights_need_weights_and_a_policy_that_can_draw() -> None:
    by_sampler = "weights_in=sampler"
    with pytest.raises(UsageError, match=r"give loss\.weighting=inverse_count"):
        apply_overrides(find_recipe("demo"), [by_sampler])
    weighted = [by_sampler, "weighting=inverse_count"]
    with pytest.raises(UsageError, match="policy 'block' reads whole shards"):
        apply_overrides(find_recipe("resnet18_early"), [*weighted, "policy=block"])
    config = apply_overrides(find_recipe("resnet18_early"), [*weighted, "policy=locality"])
    assert TrainConfig.from_dict(config.as_dict()) == config


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optim\.learning_rate is given twice"):
        apply_overrides(find_recipe("demo"), ["learning_rate=1e-3", "optim.learning_rate=1e-4"])


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_whatever_is_typed_is_taken_or_refused(word: str) -> None:
    try:
        config = apply_overrides(find_recipe("demo"), [word])
    except UsageError:
        return
    assert dict(settings_of(config)).keys() == dict(settings_of(find_recipe("demo"))).keys()


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"one of auto, demo, resnet18_early, .*, got 'resnet'"):
        find_recipe("resnet")


def test_a_configuration_of_another_version_is_refused() -> None:
    saved = find_recipe("demo").as_dict()
    with pytest.raises(UsageError, match="of another version of mstrain"):
        TrainConfig.from_dict({**saved, "color": 1})
    with pytest.raises(UsageError, match="of another version of mstrain"):
        TrainConfig.from_dict({**saved, "model": {**saved["model"], "color": 1}})


def test_a_gpu_that_torch_does_not_see_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="torch sees no GPU here; look at nvidia-smi"):
        choose_device("cuda", Topology())
    assert choose_device("auto", Topology()).type == "cpu"
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    ranks = Topology(num_nodes=2, ranks_per_node=4, rank=6)
    assert choose_device("auto", ranks) == torch.device("cuda", 2)
    # Each rank is shown its own GPU only.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda", ranks) == torch.device("cuda", 0)
    with pytest.raises(UsageError, match=r"4 ranks on a node with 1 GPU\(s\)"):
        choose_device("auto", ranks)
    assert chosen == [2, 0]


def test_a_batch_per_gpu_gives_the_global_batch_and_scales_rate_and_average() -> None:
    config = find_recipe("resnet50_early_gpus")
    assert batch_per_rank(config, 16) == 256
    found = for_ranks(config, 16)
    assert (found.batch_size, found.batch_per_gpu) == (4096, None)
    assert found.optim.learning_rate == pytest.approx(4 * config.optim.learning_rate)
    # An average over as many samples: of 62 steps now, of 1,000 before.
    assert found.optim.ema_decay == pytest.approx(1 - 16e-3, rel=1e-3)
    assert found.optim.warmup == config.optim.warmup
    assert for_ranks(found, 16) == found
    # On one GPU it is the recipe's own batch.
    alone = for_ranks(config, 1)
    assert alone == replace(config, batch_per_gpu=None)
    with pytest.raises(UsageError, match="batch_size=6 does not divide into 2 rank"):
        batch_per_rank(replace(config, batch_per_gpu=3, compute=ComputeConfig(accumulate=2)), 2)
    with pytest.raises(UsageError, match="batch_per_gpu must be >= 1, got 0"):
        apply_overrides(config, ["batch_per_gpu=0"])


def test_a_gpu_that_gets_too_little_to_do_is_told_of_in_one_line() -> None:
    config = find_recipe("resnet50_early")
    sixteen = Ranks(
        topology=Topology(num_nodes=4, ranks_per_node=4), device=torch.device("cuda", 0)
    )
    says = _advice(config, sixteen)
    assert says is not None
    assert says.startswith("each GPU gets 16 samples at a time, fewer than 64: it will wait")
    assert "\n" not in says
    assert _advice(config, replace(sixteen, device=torch.device("cpu"))) is None
    assert _advice(config, replace(sixteen, topology=Topology(ranks_per_node=4))) is None


def test_ranks_on_gpus_leave_the_cores_to_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    monkeypatch.delenv("OMP_NUM_THREADS")
    four = Topology(ranks_per_node=4)
    for wanted, device in ((None, "cpu"), (None, "cuda"), (9, "cuda")):
        set_threads(wanted, four, torch.device(device))
    set_threads(None, Topology(ranks_per_node=32), torch.device("cuda"))
    assert chosen == [16, 4, 9, 2]


def test_ranks_take_the_threads_that_the_environment_allows_unless_torchrun_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    for said in ("1", "3", "500", "0", "2,4"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        set_threads(None, Topology(ranks_per_node=4))
    set_threads(9, Topology(ranks_per_node=4))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    for said in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        set_threads(None, Topology(ranks_per_node=4))
    assert chosen == [1, 3, 16, 1, 16, 9, 16, 3]


@pytest.mark.parametrize("fails", ["init_process_group", "new_group"])
def test_ranks_that_do_not_find_each_other_are_told_of_the_interface(
    monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo] connectFullMesh failed with timeout\nmore")

    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    monkeypatch.setattr(dist, fails, fail)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    two = Topology(num_nodes=2, rank=1)
    with (
        pytest.raises(LostRankError, match=r"rank 1 cannot reach .*GLOO_SOCKET_IFNAME") as caught,
        joined_ranks(two, torch.device("cpu")),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_lanes_of_a_gpu_get_two_threads_each(
    monkeypatch: pytest.MonkeyPatch, galaxies: Path
) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(
        "mstrain.data.batches.open_augmenter", lambda *_, threads, **__: asked.append(threads)
    )
    split = msdata.open(galaxies).split("train")
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        make_augmenter(split, find_recipe("demo"), Ranks(topology=Topology(), device=device))
    assert asked == [None, 2]
