"""`msdata plan` prints a forecast, for people and for programs, of data there or assumed."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import packing
import pytest

import msdata
from msdata.errors import DataError, MissingPackageError, StorageError, UsageError
from msdata.loader.loader import Loader
from msdata.plan import command as plan_command
from msdata.plan.forecast import Job, forecast_epoch, own_job
from msdata.plan.machine import load_machine, machine_from, save_machine
from msdata.plan.ownership import equal_nodes
from msdata.plan.rendering import TIER_COLORS, draw_by_nodes, figure_of, render_report
from msdata.plan.timing import by_nodes
from msdata.topology import Topology
from mstrain.config import DataConfig

ASSUMED = "--assume-samples 40000 --assume-bytes 1000 --assume-shard-bytes 100000"
RATES = (
    "--storage-gib-per-s 0.001 --network-gib-per-s 0.01 --memory-gib-per-s 1 --samples-per-s 100000"
)


def plan(options, **keywords):
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    return plan_command.run(parser.parse_args(options.split()), **keywords)


def plan_json(capsys, options, **keywords):
    assert plan(options + " --json", **keywords) == 0
    return json.loads(capsys.readouterr().out)


def test_the_function_plans_what_the_command_prints(capsys):
    sizes = np.array([600, 400, 500])
    split = Split(sizes, np.full(1500, 100), 100, np.repeat(np.arange(3), sizes), None)
    options = "DATA --nodes 2 --memory-gib 0.0001 --batch-per-rank 16 --epochs 3 --policy locality"
    wanted = plan_json(capsys, options, open_dataset=lambda path: Dataset(split))
    found = msdata.plan(
        split, num_nodes=2, memory_gib=0.0001, batch_size=16, num_epochs=3, policy="locality"
    )
    del wanted["data"]["name"], wanted["data"]["recoded"], wanted["job"]["weights_of"]
    assert json.loads(json.dumps(found)) == wanted
    with pytest.raises(UsageError, match="do not fill a global batch"):
        msdata.plan(split, batch_size=10**6, remainder="drop")


@dataclass
class Split:
    shard_sizes: np.ndarray
    record_nbytes: np.ndarray
    sample_nbytes: int
    shard_of_sample: np.ndarray
    redshift: np.ndarray | None
    is_coded: bool = False


class Dataset:
    def __init__(self, split):
        self.splits = {"train": split}

    def split(self, name):
        return self.splits[name]


def small_split(**changes):
    sizes = np.full(40, 50)
    redshift = np.random.default_rng(0).gamma(2, 0.2, 2000)
    redshift[::7] = np.nan
    fields = {
        "shard_sizes": sizes,
        "record_nbytes": np.full(2000, 1000),
        "sample_nbytes": 1000,
        "shard_of_sample": np.repeat(np.arange(40, dtype=np.int32), sizes),
        "redshift": redshift,
    }
    return Split(**{**fields, **changes})


def test_the_report_is_the_forecast_of_the_loaders_functions(capsys):
    options = "--nodes 4 --ranks-per-node 2 --memory-gib 0.004 --epochs 4 --policy locality "
    report = plan_json(capsys, options + ASSUMED)
    job = Job(
        topology=Topology(num_nodes=4, ranks_per_node=2),
        nodes=equal_nodes(4, memory_bytes=int(0.004 * 2**30)),
        shard_sizes=np.full(400, 100),
        sample_bytes=1000,
        batch_per_rank=128,
        policy="locality",
    )
    ownership = own_job(job)
    assert [e["exact"] for e in report["epochs"]] == [True] * 4
    for epoch in report["epochs"]:
        forecast = forecast_epoch(job, ownership, epoch["epoch"])
        assert epoch["samples_by_node"] == forecast.tier_samples.tolist()
        assert epoch["storage_bytes"] == forecast.storage_bytes.sum()
    assert report["whole_job"]["storage_bytes"] == sum(e["storage_bytes"] for e in report["epochs"])


def test_epochs_beyond_the_replayed_ones_are_expected_and_marked(capsys):
    options = f"--nodes 2 --memory-gib 0.01 --epochs 9 --replay-epochs 3 {ASSUMED}"
    report = plan_json(capsys, options)
    assert [e["exact"] for e in report["epochs"]] == [True] * 3 + [False] * 6
    replayed, expected = report["epochs"][2], report["epochs"][3]
    for tier, share in replayed["shares"].items():
        assert expected["shares"][tier] == pytest.approx(share, abs=0.005)
    text = render_report({**report, "data": {**report["data"], "name": "x"}})
    assert "3 to 8 ~" in text
    assert "~ expected, by the closed form" in text


def test_the_table_names_tiers_time_and_what_binds(capsys):
    assert plan(f"--nodes 4 --memory-gib 0.004 --policy locality {RATES} {ASSUMED}") == 0
    text = capsys.readouterr().out
    for word in ("local %", "storage %", "bound by", "GPU wait", "0 cold", "twice the nodes"):
        assert word in text
    first = next(line for line in text.splitlines() if line.startswith("1 "))
    assert "storage" in first.split()
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "pairs of one shard per batch" in text


def test_too_few_shards_for_the_nodes_are_pointed_out(capsys):
    options = (
        "--nodes 30 --memory-gib 1 --policy locality --assume-samples 99200 --assume-bytes 1000"
    )
    assert plan(f"{options} --assume-shard-bytes 1600000") == 0
    assert "note: nodes hold 2 to 3 shards" in capsys.readouterr().out


def test_a_data_set_that_is_there_is_planned_with_its_redshifts(capsys):
    dataset = Dataset(small_split())
    report = plan_json(
        capsys, "DATA --nodes 2 --batch-per-rank 20", open_dataset=lambda path: dataset
    )
    assert report["data"]["name"] == "DATA, split train"
    assert report["data"]["bytes"] == 2000 * 1000
    assert report["quality"]["redshift_mean_scatter"]["ratio"] == pytest.approx(1, abs=0.4)
    distance = report["quality"]["redshift_distribution_distance"]
    assert distance["ratio"] == pytest.approx(1, abs=0.2)


def test_a_data_set_without_redshifts_is_planned_too(capsys):
    for redshift in (None, np.full(2000, np.nan)):
        dataset = Dataset(small_split(redshift=redshift))
        report = plan_json(capsys, "DATA", open_dataset=lambda path, d=dataset: d)
        assert "redshift_mean_scatter" not in report["quality"]


def test_nodes_may_differ_in_capacity(capsys):
    report = plan_json(capsys, f"--nodes 2 --memory-gib 0.004,0.008 {ASSUMED}")
    assert report["caches"]["memory_capacity_bytes"] == int(0.004 * 2**30) + int(0.008 * 2**30)
    by_node = report["epochs"][1]["samples_by_node"]
    assert sum(by_node[0]) == sum(by_node[1])


def test_nodes_of_each_capacity_are_told_of_tier_by_tier(capsys):
    options = "--memory-gib 3x0.002,0.008 --ssd-gib 0.001 --ranks-per-node 2 --policy locality "
    options += ASSUMED
    report = plan_json(capsys, options)
    assert report["job"]["nodes"] == 4
    epoch = report["epochs"][1]
    large, small = report["kinds_of_nodes"]
    for kind, nodes, gib in ((large, [3], 0.008), (small, [0, 1, 2], 0.002)):
        assert kind["nodes"] == len(nodes)
        assert kind["memory_capacity_bytes"] == int(gib * 2**30)
        assert kind["ssd_capacity_bytes"] == int(0.001 * 2**30)
        room = kind["memory_capacity_bytes"] + kind["ssd_capacity_bytes"]
        assert room - 2 * 100_000 < kind["held_bytes_a_node"] <= room
        counts = np.array(epoch["samples_by_node"])[nodes].sum(axis=0)
        assert list(kind["shares"].values()) == pytest.approx(counts / counts.sum())
        assert kind["storage_bytes_a_node"] * len(nodes) == counts[3] * 1000
    assert large["shares"]["local"] > small["shares"]["local"]
    assert plan(options) == 0
    text = capsys.readouterr().out
    table = text[text.index("nodes by capacity, each of them in epoch 1") :].splitlines()
    assert [row.split()[0] for row in table[1:4]] == ["nodes", "1", "3"]
    assert table[2].split()[1:3] == ["8.19", "MiB"]


def test_nodes_that_are_all_the_same_have_no_table_of_kinds(capsys):
    for options in ("--nodes 3 --memory-gib 0.004", "--memory-gib 3x0.004", "--memory-gib 0.004"):
        assert plan(f"{options} {ASSUMED}") == 0
        assert "nodes by capacity" not in capsys.readouterr().out


def test_a_plan_of_one_epoch_tells_what_nodes_would_read_in_the_next(capsys):
    report = plan_json(capsys, f"--memory-gib 0.002,0.008 --epochs 1 {ASSUMED}")
    assert [kind["epoch"] for kind in report["kinds_of_nodes"]] == [1, 1]


def test_trials_that_share_a_cache_read_what_it_holds_once(capsys):
    options = f"{ASSUMED} --batch-per-rank 16 --epochs 3 --trials 4 --memory-gib "
    whole, half = (plan_json(capsys, options + gib)["trials"] for gib in ("1", "0.0187"))
    nbytes = 40000 * 1000
    assert whole["storage_bytes_shared"] == whole["storage_bytes_one"] == nbytes
    assert whole["storage_bytes_apart"] == 4 * nbytes
    # One cold epoch, and eleven that read the half without a place.
    assert half["storage_bytes_shared"] == pytest.approx(nbytes * (1 + 11 / 2), rel=0.01)
    assert half["storage_bytes_apart"] == pytest.approx(nbytes * 4 * 2, rel=0.01)
    assert plan(options + "1") == 0
    assert "share this node's cache: 38.15 MiB from storage, 1.00 of" in capsys.readouterr().out
    for more in (" --nodes 2", " --trials 0"):
        with pytest.raises(UsageError, match="--trials must be at least 1, and more on one node"):
            plan(options + "1" + more)


def test_a_machine_file_gives_the_rates_and_options_overrule_it(capsys, tmp_path):
    path = tmp_path / "machine.json"
    save_machine(path, {"storage_bytes_per_s": 1e6, "network_bytes_per_s": 1e9, "host": "n0"})
    options = f"--machine {path} --storage-gib-per-s 0.5 {ASSUMED}"
    report = plan_json(capsys, options)
    assert report["machine"]["storage"] == 0.5 * 2**30
    assert report["machine"]["network"] == 1e9
    assert report["machine"]["ssd"] is None


def test_a_machine_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "machine.json"
    save_machine(path, {"ssd_bytes_per_s": 1.0})
    save_machine(path, {"ssd_bytes_per_s": 2.0})
    assert machine_from(load_machine(path)).ssd == 2.0
    with pytest.raises(TypeError):
        save_machine(path, {"ssd_bytes_per_s": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["machine.json"]
    with pytest.raises(StorageError, match="cannot write"):
        save_machine(tmp_path / "nowhere" / "machine.json", {})


def test_a_file_that_is_no_machine_is_refused(tmp_path):
    path = tmp_path / "machine.json"
    with pytest.raises(UsageError, match="does not exist"):
        load_machine(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        load_machine(path)
    path.write_text('{"format": 99}')
    with pytest.raises(DataError, match="format must be one of 1, got 99"):
        load_machine(path)


def test_other_numbers_of_nodes_are_compared(capsys):
    assert plan(f"--nodes 2 --memory-gib 0.004 --by-nodes 1,2,40 --json {ASSUMED}") == 0
    found = json.loads(capsys.readouterr().out)
    assert [v["nodes"] for v in found["by_nodes"]] == [1, 2, 40]
    hits = [1 - v["shares"]["storage"] for v in found["by_nodes"]]
    assert hits == sorted(hits)
    assert found["by_nodes"][1]["shares"] == found["what_if"][0]["shares"]


@pytest.mark.parametrize("numbers", ["0", "a", "1,-2", "9999999999"])
def test_numbers_of_nodes_that_are_none_are_refused(numbers):
    with pytest.raises(UsageError, match="must be numbers of nodes"):
        plan(f"--by-nodes={numbers} {ASSUMED}")


def test_the_figure_is_a_png(capsys, tmp_path):
    for rates, name in ((RATES, "times.png"), ("", "hits.png")):
        assert (
            plan(f"--nodes 3 --memory-gib 0.004 --figure {tmp_path / name} {rates} {ASSUMED}") == 0
        )
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match=r"cannot write .*nowhere"):
        plan(f"--figure {tmp_path / 'nowhere' / 'a.png'} {ASSUMED}")


def variants(numbers, rates):
    """Rows of a job on these numbers of nodes, by a machine of `machine.json`'s rates."""
    job = Job(
        topology=Topology(),
        nodes=equal_nodes(1, memory_bytes=4 << 20),
        shard_sizes=np.full(400, 100),
        sample_bytes=1000,
        batch_per_rank=64,
    )
    return by_nodes(job, machine_from(rates), numbers)


@pytest.mark.parametrize(
    ("storage_bytes_per_s", "label"),
    [(1e6, "seconds per epoch"), (2e4, "minutes per epoch"), (1e3, "hours per epoch")],
)
def test_the_figure_shows_the_numbers_asked_for_in_a_unit_that_fits(storage_bytes_per_s, label):
    numbers = [3, 5, 40]
    shown = variants(numbers, {"storage_bytes_per_s": storage_bytes_per_s})
    tiers, times = figure_of(shown).axes
    for panel in (tiers, times):
        assert [text.get_text() for text in panel.get_xticklabels()] == ["3", "5", "40"]
    assert times.get_ylabel() == label
    unit_s = {"seconds": 1, "minutes": 60, "hours": 3600}[label.split()[0]]
    (storage,) = (line for line in times.lines if line.get_label() == "storage")
    longest_s = [v.time.busy_s["storage"] for v in shown]
    np.testing.assert_allclose(np.nan_to_num(storage.get_ydata()) * unit_s, longest_s)
    for bars, tier in zip(tiers.containers, range(4), strict=True):
        heights = [bar.get_height() for bar in bars]
        np.testing.assert_allclose(heights, [100 * v.forecast.shares[tier] for v in shown])


def test_the_figure_of_a_plan_has_the_nodes_of_by_nodes(monkeypatch, tmp_path, capsys):
    drawn = []
    monkeypatch.setattr(plan_command, "draw_by_nodes", lambda rows, path: drawn.append(rows))
    for options in ("--by-nodes 9,3,3", "--nodes 5"):
        assert plan(f"{options} --figure {tmp_path / 'a.png'} {ASSUMED}") == 0
    assert [v.num_nodes for v in drawn[0]] == [3, 9]
    assert [v.num_nodes for v in drawn[1]] == [1, 2, 4, 5, 8, 16]


def test_colors_of_tiers_differ_without_red_or_green_cones():
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in TIER_COLORS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Source: Viénot, Brettel & Mollon, "Digital video colourmaps for checking the legibility of
    # displays by dichromats" (1999): protanopes, deuteranopes.
    for seen in (
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ):
        colors = np.clip(linear @ np.array(seen).T, 0, 1) ** (1 / 2.2)
        for number, one in enumerate(colors):
            others = np.delete(colors, number, axis=0)
            assert np.linalg.norm(others - one, axis=1).min() > 0.2


def test_a_plan_of_no_steps_is_refused_and_what_would_have_none_is_left_out(capsys):
    small = "--assume-samples 100 --assume-bytes 5 --batch-per-rank 64 --remainder drop"
    assert plan(small) == 0
    text = capsys.readouterr().out
    assert "twice the memory" in text
    assert "twice the nodes" not in text
    with pytest.raises(UsageError, match=r"0 steps per epoch on 2 nodes: 100 samples do not fill"):
        plan(f"{small} --nodes 2")
    with pytest.raises(UsageError, match="0 steps per epoch on 8 nodes"):
        plan(f"{small} --by-nodes 1,8")
    assert plan("--assume-samples 100 --assume-bytes 5 --nodes 2 --remainder short") == 0


def test_a_former_option_is_taken_with_a_note(capsys):
    options = "--assume-samples 100 --assume-bytes 5 --batch-per-rank 64 --json"
    assert plan(f"{options} --remainder drop") == 0
    wanted = capsys.readouterr().out
    assert plan(f"{options} --last drop") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (wanted, "note: --last is now --remainder\n")


def test_the_loader_the_training_and_the_plan_start_from_the_same_settings():
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    found = parser.parse_args([])
    loader = inspect.signature(Loader.__init__).parameters
    assert found.policy == loader["policy"].default == DataConfig().policy
    for option in ("remainder", "seed", "buffer_samples"):
        assert getattr(found, option) == loader[option].default
    assert found.batch_per_rank == loader["batch_size"].default


def test_a_plan_of_shuffle_beside_caches_tells_what_train_ddp_does(capsys):
    note = "slurm/train_ddp.sh deals samples to the nodes that cache them"
    cached = f"--memory-gib 0.004 {ASSUMED}"
    for options, says in (
        (f"--nodes 2 {cached}", True),
        (cached, False),
        (f"--nodes 2 --policy locality {cached}", False),
        (f"--nodes 2 {ASSUMED}", False),
    ):
        assert plan(options) == 0
        assert (note in capsys.readouterr().out) == says
    script = (Path(__file__).parents[2] / "slurm" / "train_ddp.sh").read_text()
    assert "set_default data.policy=locality" in script


def test_a_figure_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"msdata\[bench\]"):
        draw_by_nodes([], tmp_path / "a.png")


def test_data_smaller_than_a_batch_are_planned_without_quality(capsys):
    report = plan_json(capsys, "--assume-samples 10 --assume-bytes 5 --batch-per-rank 64")
    assert report["quality"] is None
    assert report["job"]["steps_per_epoch"] == 1
    assert plan("--assume-samples 10 --assume-bytes 5 --batch-per-rank 64") == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "name a data set"),
        ("DATA", "DATA does not exist"),
        ("--assume-samples 5", "--assume-bytes"),
        ("--assume-samples 0 --assume-bytes 5", "both be given and at least 1"),
        (f"--epochs 0 {ASSUMED}", "--epochs must be at least 1, got 0"),
        (
            f"--nodes 3 --memory-gib 1,2 {ASSUMED}",
            r"or 3 for 3 nodes, got '1,2' \(2\)",
        ),
        (
            f"--memory-gib 1,2 --ssd-gib 1,2,3 {ASSUMED}",
            "--memory-gib must be one number, or 3",
        ),
        (f"--memory-gib ax1 {ASSUMED}", "such as 400,400,200 or 2x400,200"),
        (f"--memory-gib 1,,2 {ASSUMED}", "must be GiB of at least 0, .* got '1,,2'"),
        (f"--memory-gib nan {ASSUMED}", "must be GiB of at least 0, .* got 'nan'"),
        (f"--memory-gib much {ASSUMED}", "must be GiB of at least 0, .* got 'much'"),
        (f"--ssd-gib -1 {ASSUMED}", "must be GiB of at least 0, .* got '-1'"),
        (f"--nodes 0 {ASSUMED}", "--nodes must be at least 1, got 0"),
        (f"--storage-gib-per-s 0 {ASSUMED}", "storage must be > 0, got 0"),
        (
            f"--policy block --buffer-samples 0 {ASSUMED}",
            "buffer_samples must be from 1",
        ),
    ],
)
def test_options_out_of_range_are_refused_with_their_values(options, message):
    with pytest.raises(UsageError, match=message):
        plan(options)


def test_an_empty_split_is_refused():
    dataset = Dataset(
        small_split(shard_sizes=np.zeros(0, np.int64), shard_of_sample=np.zeros(0, np.int32))
    )
    with pytest.raises(UsageError, match="it has no samples"):
        plan("DATA", open_dataset=lambda path: dataset)


def test_a_hundred_epochs_on_a_thousand_nodes_are_planned_in_seconds(capsys):
    options = "--nodes 1024 --ranks-per-node 8 --memory-gib 4 --epochs 100"
    start = time.process_time()
    assert plan(f"{options} --assume-samples 4300000 --assume-bytes 594384") == 0
    assert time.process_time() - start < 6
    assert "3 to 99 ~" in capsys.readouterr().out


def test_a_coded_data_set_is_planned_with_the_lengths_of_its_records(capsys):
    nbytes = np.random.default_rng(2).integers(100, 200, 2000)
    dataset = Dataset(small_split(record_nbytes=nbytes, is_coded=True))
    options = f"DATA --nodes 2 --batch-per-rank 20 --memory-gib {1.02 * nbytes.sum() / 2**31}"
    report = plan_json(capsys, options, open_dataset=lambda path: dataset)
    assert report["data"]["bytes"] == nbytes.sum()
    assert report["data"]["decoded_bytes"] == 1000
    assert report["epochs"][1]["shares"]["storage"] == 0
    assert sum(report["epochs"][1]["bytes"].values()) == nbytes.sum()
    plan(options, open_dataset=lambda path: dataset)
    text = capsys.readouterr().out
    assert "times smaller than the 1,000 bytes that a sample decodes to" in text
    assert "note: decoding may bind; 'msdata probe' measures" in text


def test_an_assumed_ratio_shrinks_records_and_names_the_limit_that_decoding_is(capsys):
    options = f"--nodes 1 --memory-gib 0.00745 --assume-ratio 6.25 {RATES} {ASSUMED}"
    plain = plan_json(capsys, options.replace("--assume-ratio 6.25", ""))
    coded = plan_json(capsys, options + " --decode-gib-per-s 0.001 --cores 4")
    assert plain["epochs"][1]["shares"]["storage"] == pytest.approx(0.8, abs=0.01)
    assert coded["epochs"][1]["shares"]["storage"] == 0
    assert coded["data"]["bytes"] == plain["data"]["bytes"] / 6.25
    assert coded["data"]["shards"] == plain["data"]["shards"] / 6.25
    assert coded["epochs"][1]["time"]["binds"] == "decode"
    plan(options + " --decode-gib-per-s 0.001 --cores 4")
    text = capsys.readouterr().out
    assert (
        "coded: 6.25 times smaller than the 1,000 bytes that a sample decodes to (assumed)" in text
    )
    assert "note: decoding binds with 4 cores per node; " in text
    for ratio in ("0", "-1", "nan"):
        with pytest.raises(UsageError, match="--assume-ratio must be a number > 0"):
            plan(f"{ASSUMED} --assume-ratio {ratio}")
    dataset = Dataset(small_split(record_nbytes=np.full(2000, 500), is_coded=True))
    with pytest.raises(UsageError, match="is coded already"):
        plan("DATA --assume-ratio 6", open_dataset=lambda path: dataset)


@pytest.mark.parametrize("options", [["4", "lz4"], ["image=2", "none"]])
def test_a_packed_data_set_is_predicted_before_it_is_made(packed, tiny_source, capsys, options):
    quantize, compress = options
    coding = f"--quantize {quantize} --compress {compress}"
    shards = packing.TINY_SHARDS
    data, made = packed(tiny_source, *shards), packed(tiny_source, *shards, *coding.split())
    predicted = plan_json(capsys, f"{data} {coding} --batch-per-rank 8")["data"]
    found = plan_json(capsys, f"{made} --batch-per-rank 8")["data"]
    assert predicted["samples"] == found["samples"] < 256
    # All samples were measured; only their mean is rounded.
    assert predicted["bytes"] == pytest.approx(found["bytes"], abs=found["samples"] / 2)
    assert predicted["decoded_bytes"] == found["decoded_bytes"]
    assert (predicted["recoded"]["options"], found["recoded"]) == (coding, None)
    plan(f"{data} {coding} --batch-per-rank 8")
    assert f"as packed with {coding}, measured on {found['samples']} samples (+- " in (
        capsys.readouterr().out
    )
    with pytest.raises(UsageError, match="is coded already; plan it as it is"):
        plan(f"{made} {coding}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{ASSUMED} --quantize 4", "need a data set to measure; give --assume-ratio"),
        ("DATA --compress lz4 --assume-ratio 6", "takes the place of --quantize and --compress"),
        ("DATA --quantize flux=4", "must name one of"),
    ],
)
def test_codes_that_cannot_be_predicted_are_refused(options, message, packed, tiny_source):
    data = packed(tiny_source, *packing.TINY_SHARDS)
    with pytest.raises(UsageError, match=message):
        plan(options.replace("DATA", str(data)))
