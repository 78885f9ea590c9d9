"""The page of the smoke test: what a run says of itself is held against what was asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mstrain.training.metrics_log import Placement, read_placement
from mstrain.training.smoke_page import main

EPOCH: dict[str, Any] = {
    **{"kind": "epoch", "epoch": 2, "num_epochs": 3, "step": 6, "loss": 4.25, "seconds": 2.0},
    **{"samples_per_s": 1234.0, "data_wait_fraction": 0.021},
    "hits": {"local": 10, "ssd": 0, "peer": 5, "storage": 5},
    "forecast_hits": {"local": 10, "ssd": 0, "peer": 5, "storage": 5},
    **{"hit_rate": 0.75, "forecast_hit_rate": 0.75},
}


def place(node: str, device: str = "cpu", **changes: str) -> Placement:
    usual = {"collectives": "gloo", "images": "reference"}
    return Placement(node=node, device=device, **{**usual, **changes})


def write_run(folder: Path, places: list[Placement] | None = None, **changes: Any) -> Path:
    told = [place("n0"), place("n1")] if places is None else places
    (folder / "ranks.json").write_text(json.dumps([asdict(one) for one in told]))
    (folder / "metrics.jsonl").write_text(json.dumps({**EPOCH, **changes}) + "\n")
    (folder / "evaluation-test.json").write_text(json.dumps({"metrics": {"num_samples": 16}}))
    return folder


def test_a_run_as_asked_for_passes_with_all_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    assert main([str(run), "--ranks", "2", "--split", "test"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ranks      2 on 2 node(s)",
        "  n0: rank 0 on cpu",
        "  n1: rank 1 on cpu",
        "backend    gloo",
        "images     reference",
        "epochs     1 of 3, loss 4.250, the last in 0:02 at 1,234 samples/s",
        "data wait  2.1% of the last epoch",
        "hits       75.0%, forecast 75.0% "
        "(local 10 of 10, ssd 0 of 0, peer 5 of 5, storage 5 of 5)",
        f"evaluated  16 objects of split test: {run}/report.html",
        "smoke test passed",
    ]
    assert read_placement(run) == [place("n0"), place("n1")]


@pytest.mark.parametrize(
    ("words", "places", "changes", "says"),
    [
        (["--ranks", "4"], None, {}, "WRONG: 4 asked for, 2 on 2 node(s)"),
        (["--ranks", "2", "--gpus"], None, {}, "WRONG: the job has GPUs, and ranks ran on the CPU"),
        (
            ["--ranks", "2", "--gpus"],
            [place("n0", "cuda:0 H200", images="dali"), place("n0", "cuda:1 H200", images="torch")],
            {},
            "WRONG: ranks differ: dali, torch",
        ),
        (
            ["--ranks", "2"],
            None,
            {"hits": {"local": 9, "ssd": 0, "peer": 5, "storage": 6}, "hit_rate": 0.7},
            "WRONG: 70.0%, forecast 75.0% (local 9 of 10",
        ),
        (["--ranks", "2"], None, {"kind": "step"}, "WRONG: none was trained to its end"),
    ],
)
def test_a_run_that_differs_fails_and_says_in_what(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    places: list[Placement] | None,
    changes: dict[str, Any],
    says: str,
) -> None:
    run = write_run(tmp_path, places, **changes)
    assert main([str(run), *words]) == 1
    out = capsys.readouterr().out
    assert says in out
    assert out.endswith("smoke test FAILED\n")


def test_two_gpus_of_a_node_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [place("n0", f"cuda:{n} H200", collectives="nccl", images="dali") for n in range(2)]
    run = write_run(tmp_path, places, hits=None)
    assert main([str(run), "--ranks", "2", "--gpus"]) == 0
    out = capsys.readouterr().out
    assert "  n0: rank 0 on cuda:0 H200, rank 1 on cuda:1 H200\n" in out
    assert "hits       no cache" in out


def test_a_run_that_never_started_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--ranks", "2"]) == 1
    assert "ranks.json not found: the run did not get so far" in capsys.readouterr().err
