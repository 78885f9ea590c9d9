"""The benchmark of a GPU: whole on the CPU, and without a loss where a part of it fails."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is absent: pip install 'msdata[train]'")

import torch

from benchmarks import augment_rates, gpu
from benchmarks.__main__ import main
from msdata.errors import MissingPackageError

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = ("output_size=24", "depth=10", "width=8", "num_bins=16", "batch_size=4")
SMALL = ("--steps=2", "--turns=1", "--batches=2,4", "--device=cpu", "--recipe=demo", *SETTINGS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, *words: str) -> tuple[int, Any]:
    """The exit code, and what was written."""
    places = ("--data", str(folder), "--out", str(folder), "--objects", "8")
    code = main(["gpu", *places, *SMALL, *words])
    file = folder / "gpu.json"
    return code, json.loads(file.read_text()) if file.exists() else None


def test_it_runs_whole_on_the_cpu_and_names_what_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_rates, "NUM_STARS", 2)
    monkeypatch.setattr(augment_rates, "BATCH_SIZE", 2)
    code, result = run(tmp_path)
    assert result["failures"] == {}
    assert code == int(bool(result["limits_exceeded"]))
    sections = result["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    backends = {"dali", "torch"} - {n.split(": ")[-1] for n in result["not_measured"]}
    for backend in backends:
        assert sections["held images"][backend]["num_wrong"] == 0
        assert sections["agreement"][backend]["early"]["difference"] < 1e-3
        assert sections["augmentation"][backend]["samples_per_s"]["median"] > 0
        assert sections["fed"][backend]["batch_s"]["median"] > 0
        assert 0 <= sections["fed"][backend]["wait_share"]["median"] < 1
    assert list(sections["batches"]) == ["2", "4"]
    ranks = ["one rank", "eight, synchronized", "eight, each rank's own", "eight, group norm"]
    assert list(sections["ranks"]) == ranks
    assert {"as in the recipe", "adamw"} < sections["variants"].keys()
    assert any("conv" in line for line in sections["profile"]["torch"])
    assert {"page locks", "copies: page-locked", "variants: compiled"} < result[
        "not_measured"
    ].keys()


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_section_that_fails_is_noted_and_the_next_one_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
) -> None:
    def agreement(measured: Any) -> dict[str, Any]:
        # What came before is in the file already.
        before = json.loads((tmp_path / "gpu.json").read_text())
        assert "device" in before["sections"]
        assert before["not_measured"]["copies"] == "the benchmark ended before"
        raise kind("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu.SECTIONS, "agreement", agreement)
    code, result = run(tmp_path, "--sections=device,agreement,copies")
    assert code == 1
    assert "illegal memory access" in result["failures"]["agreement"]
    assert result["sections"]["copies"]
    assert result["not_measured"]["fed"] == "not asked for"
    assert f"failures: agreement: {kind.__name__}: CUDA error" in capsys.readouterr().out


def test_what_is_interrupted_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(measured: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SECTIONS, "copies", stop)
    code, result = run(tmp_path, "--sections=device,copies")
    assert code == 128 + signal.SIGINT
    assert result["sections"]["device"]["device"] == "cpu"
    assert result["not_measured"]["copies"] == "the benchmark ended before"


def test_memory_that_is_short_and_absent_packages_are_no_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(measured: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(gpu.SECTIONS, "batches", too_large)
    # Facts of the host that cannot be found take nothing away, either.
    monkeypatch.setattr(gpu, "write_result", lambda *values, **options: 1 / 0)
    code, result = run(tmp_path, "--sections=batches")
    assert code == 0
    assert result["not_measured"]["batches"] == "memory is short: CUDA out of memory"


def test_where_opencv_is_too_old_for_the_reference_torch_on_the_cpu_stands_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augment_rates, "NUM_STARS", 2)
    monkeypatch.setattr(augment_rates, "BATCH_SIZE", 2)
    wanted = augment_rates.measure_truth("torch")["late"]
    assert wanted["against"] == "reference"

    def fail(*values: Any, **options: Any) -> None:
        raise MissingPackageError("OpenCV 4.13 rounds the places it interpolates at")

    monkeypatch.setattr("msdata.augment.augmenter.ReferenceAugmenter", fail)
    found = augment_rates.measure_truth("torch")["late"]
    assert found["against"] == "torch on the CPU"
    assert found["difference"] == 0
    assert found["flux_error"] == wanted["flux_error"]


def test_limits_that_are_exceeded_are_named() -> None:
    def fed(wait: float, cost: float) -> dict[str, Any]:
        return {"wait_share": {"median": wait}, "cost_share": {"median": cost}}

    limit = {"wait_share": {"median": 0.5}}
    assert gpu.exceeded_limits({"limit": limit, "torch": fed(0.009, 0.04)}) == {}
    found = gpu.exceeded_limits({"limit": limit, "dali": fed(0.02, 0.07)})
    assert found == {
        "fed: dali: wait": "the device waits 2.00%, limit 1%",
        "fed: dali: cost": "batches cost 7.00% of a step, limit 5%",
    }


def test_wrong_usage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for words, message in {
        ("--device=cuda",): "GPU",
        ("--objects=2",): "2 objects do not fill a batch of 4",
        ("--sections=fed,speed",): "must be some of device, page locks, .*, got speed",
        ("--steps=1",): "--steps must be at least 2",
    }.items():
        assert run(tmp_path, *words) == (2, None)
        assert re.search(message, capsys.readouterr().err)
