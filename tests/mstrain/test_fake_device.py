"""Training on CUDA devices that are not there: waits in a step, mixed devices, unequal collectives.

Fake tensors know shapes, types and devices, so this shows where the host would wait and what would
be sent between GPUs, and no number of it; see `tests/support/fake_device.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import packing
import pytest
import torch

SUPPORT = Path(__file__).parents[1] / "support"
SMALL = ("depth=10", "width=4", "num_bins=16", "hidden=16")
ACCUMULATED = (*SMALL, "accumulate=2", "precision=float32")
SCALED = (*SMALL, "precision=fp16", "weighting=inverse_count", "label_width=0.05")
EARLY, LATE = "resnet50_early", "resnet50_late"
BACKENDS = ("reference", "torch")
Answer = tuple[str | None, list[str], list[str]]

# By name: recipe, ranks, this rank, its samples, settings.
CASES: dict[str, tuple[str, int, int, int, tuple[str, ...]]] = {
    "early": (EARLY, 1, 0, 4, SMALL),
    "fp16": (EARLY, 1, 0, 4, (*SCALED, "optim.name=adamw")),
    "fp16, nadam": (EARLY, 1, 0, 4, (*SCALED, "ebv_column=none")),
    "eight early": (EARLY, 8, 0, 4, SMALL),
    "eight early, no samples": (EARLY, 8, 7, 0, SMALL),
    "eight late, parts": (LATE, 8, 0, 4, ACCUMULATED),
    "eight late, parts, no samples": (LATE, 8, 7, 0, ACCUMULATED),
    "eight groups": (EARLY, 8, 0, 4, (*SCALED, "norm=group", "optim.name=adamw")),
    "eight unsynchronized": (EARLY, 8, 0, 4, (*SMALL, "sync_batch_norm=no")),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, galaxies: Path) -> dict[str, Answer]:
    """What all cases gave, run by one process with fake devices."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to make the fake CUDA device with")
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA of its own; the fake device is for one that has none")
    home = Path(torch.__file__).parent
    library = tmp_path_factory.mktemp("shim") / "fake_cuda.so"
    words = [compiler, "-shared", "-fPIC", "-std=c++20", "-O0", str(SUPPORT / "fake_cuda.cpp")]
    words += [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    words += [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    subprocess.run([*words, "-o", str(library)], check=True, capture_output=True)

    names = ("recipe", "world", "rank", "num_samples", "settings")
    cases = {name: dict(zip(names, case, strict=True)) for name, case in CASES.items()}
    for backend in BACKENDS:
        cases[backend] = training_case(galaxies, tmp_path_factory.mktemp("run") / "run", backend)
    program = [sys.executable, "-W", "ignore", str(SUPPORT / "fake_device.py"), str(library)]
    process = subprocess.run(
        program,
        input=json.dumps([*cases.values()]),
        capture_output=True,
        text=True,
        check=False,
        env=packing.environment(OMP_NUM_THREADS="1"),
    )
    assert process.returncode == 0, process.stderr
    found = [tuple(json.loads(line)) for line in process.stdout.splitlines()]
    return dict(zip(cases, found, strict=True))


def training_case(data: Path, out: Path, backend: str) -> dict[str, Any]:
    """A training of two epochs of five steps that is stopped and resumed."""
    settings = ("output_size=24", "scaling=linear10", "batch_size=12", "epochs=2", *SMALL)
    settings += ("log.every_steps=3", "tensorboard=no", "data.threads=1", f"backend={backend}")
    return {
        "recipe": "demo",
        "world": 1,
        "data": str(data),
        "out": str(out),
        "settings": settings,
        "stops": [(8, 7), (0, 10)],
    }


@pytest.mark.parametrize("name", CASES)
def test_a_step_runs_on_one_device_and_waits_for_it_nowhere(
    answers: dict[str, Answer], name: str
) -> None:
    fault, waits, collectives = answers[name]
    assert fault is None, fault
    if name == "fp16, nadam":
        # Once per step torch asks whether a gradient was infinite; fused kernels see themselves.
        assert set(waits) == {"value at grad_scaler.py:_maybe_opt_step > grad_scaler.py:<genexpr>"}
        assert len(waits) == 2
    else:
        assert waits == []
    assert bool(collectives) == (CASES[name][1] > 1)
    for line in collectives:
        assert line.count(" cuda:0") == line.count("torch."), line


@pytest.mark.parametrize("name", [n for n in CASES if f"{n}, no samples" in CASES])
def test_a_rank_without_samples_makes_the_same_collectives_as_the_others(
    answers: dict[str, Answer], name: str
) -> None:
    mine, others = answers[f"{name}, no samples"][2], answers[name][2]
    assert mine == others
    # The sums of the step come last; batch norm's are there once per layer and direction.
    assert others[-1] == "allreduce_.default ['(3,) torch.float64 cuda:0']"
    num_norms = {"eight early": 12, "eight late, parts": 2 * 36}[name]
    kinds = Counter(line.partition(" ")[0] for line in others)
    assert kinds["_allgather_base_.default"] == num_norms
    assert kinds["allreduce_.default"] == num_norms + 1
    assert kinds["bucket"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_is_stopped_and_resumed_waits_at_lines_of_its_log_epochs_and_saves_alone(
    answers: dict[str, Answer], backend: str
) -> None:
    # Of five steps an epoch; the one validation batch asks, too.
    fault, waits, _ = answers[backend]
    assert fault is None, fault
    # Before the first step.
    starting = ("train_step.py:__init__", "train_step.py:load_state_dict", "optimizer.py:_cast")
    counts = Counter(wait for wait in waits if not any(place in wait for place in starting))
    allowed = {
        "value at trainer.py:_train_epoch > train_step.py:check_finite": 2,
        "value at trainer.py:fit > trainer.py:_train_epoch": 2,
        "value at trainer.py:_train_epoch > trainer.py:values": 2 * 2 * 3,
        "value at trainer.py:fit > trainer.py:_end_epoch": 2 * 2,
        "value at trainer.py:_end_epoch > trainer.py:_validation_means": 2 * 3,
        "value at trainer.py:_end_epoch > trainer.py:_save": 2 * 2,
        "value at trainer.py:_save_and_stop > trainer.py:_save": 2,
    }
    assert counts.keys() <= allowed.keys()
    assert all(counts[name] <= most for name, most in allowed.items()), counts
