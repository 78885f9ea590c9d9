"""Signals to the batch script of a training before anything is trained: it is requeued, not killed.

No Slurm is needed: srun, squeue, scontrol and python are stand-ins that note what they are asked,
and each can be told to wait, so that the signal comes when the script is at that place.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import packing
import pytest

SLURM = Path(__file__).parents[2] / "slurm"
STATION = """
at() {{
  echo "$*" >>"{folder}/said"
  if [[ "$*" == *"$WAITS_AT"* ]]; then
    touch "{folder}/waiting"
    # In pieces: a shell runs its traps between commands.
    until [[ -e "{folder}/go" ]]; do sleep 0.05; done
  fi
}}
"""
# Slurm's own programs, and the interpreter; all that the script starts.
STUBS = {
    "squeue": 'echo "$JOB_STATE"',
    "scontrol": 'at "scontrol $*"; [[ $1 != show ]] || echo "NodeAddr=127.0.0.1 n0"',
    "python": 'at "python $*"',
    "srun": 'at "srun $*"',
}
# Where the script may be when it is asked, in the order in which it gets there.
PLACES = {
    "modules": "site",
    "import": "import msdata",
    "settings": "find_recipe",
    "doctor": "msdata doctor",
    "torch": "find_spec",
}


@dataclass
class Job:
    """A running batch script, and what was asked of Slurm."""

    folder: Path
    process: subprocess.Popen[str]

    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []

    def asked_for(self, words: str) -> list[str]:
        return [line for line in self.said() if words in line]

    def wait_until_there(self) -> None:
        assert packing.wait_for(lambda: (self.folder / "waiting").exists(), self.process)

    def end(self) -> str:
        (self.folder / "go").touch()
        return self.process.communicate(timeout=packing.TIMEOUT_S)[0]


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    jobs = []

    def start_job(waits_at: str, state: str = "RUNNING", **environ: str) -> Job:
        folder = tmp_path / "bin"
        folder.mkdir()
        station = STATION.format(folder=tmp_path)
        for name, code in STUBS.items():
            (folder / name).write_text(f"#!/bin/bash\n{station}\n{code}\n")
            (folder / name).chmod(0o755)
        (tmp_path / "site.sh").write_text(f"{station}\nat site\n")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "dataset.json").touch()
        # What `module_dir torch` prints has to be there.
        (tmp_path / "distributed").mkdir()
        (tmp_path / "distributed" / "run.py").touch()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        variables = {
            **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n0"},
            **{"MSDATA_SITE": str(tmp_path / "site.sh"), "PYTHON": str(folder / "python")},
            **{"WAITS_AT": waits_at, "JOB_STATE": state, "CACHE_GIB": "0", "EVALUATE": "none"},
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        process = subprocess.Popen(
            [SLURM / "train_ddp.sh", "demo", tmp_path / "data", tmp_path / "run"],
            env={**kept, **variables, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        jobs.append(process)
        return Job(tmp_path, process)

    yield start_job
    for process in jobs:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_requeued(job: Job, said: str) -> None:
    assert job.process.returncode == 0, said
    assert "came before any work started; requeued" in said
    assert job.asked_for("scontrol requeue") == ["scontrol requeue 4711"]
    assert job.asked_for("torch.distributed.run") == []
    assert list((job.folder / "run").glob(".job-*")) == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_a_job_asked_to_end_before_it_trains_is_requeued(
    start: Start, place: str, number: int
) -> None:
    job = start(PLACES[place])
    job.wait_until_there()
    os.kill(job.process.pid, number)
    assert_requeued(job, job.end())


@pytest.mark.parametrize("place", ["modules", "import", "settings", "doctor"])
def test_what_a_signal_to_all_its_processes_has_killed_is_no_mistake_of_the_users(
    start: Start, place: str
) -> None:
    job = start(PLACES[place], DOCTOR="strict")
    job.wait_until_there()
    # `scancel --full --signal=USR1`: whatever the script is waiting for dies of it.
    os.killpg(job.process.pid, signal.SIGUSR1)
    assert_requeued(job, job.end())


def test_a_job_that_slurm_is_ending_is_left_to_slurm(start: Start) -> None:
    job = start(PLACES["doctor"], state="COMPLETING")
    job.wait_until_there()
    os.kill(job.process.pid, signal.SIGTERM)
    said = job.end()
    assert job.process.returncode == 0
    assert "Slurm is ending this job" in said
    assert job.asked_for("scontrol requeue") == []
    assert job.asked_for("torch.distributed.run") == []


def test_services_that_are_still_starting_are_not_waited_for(start: Start) -> None:
    job = start("cache serve", CACHE_GIB="1", CACHE_WAIT_S="600")
    job.wait_until_there()
    os.kill(job.process.pid, signal.SIGUSR1)
    assert_requeued(job, job.end())


def test_a_signal_while_the_ranks_are_being_started_reaches_them(start: Start) -> None:
    job = start("torch.distributed.run")
    job.wait_until_there()
    os.kill(job.process.pid, signal.SIGUSR1)
    said = job.end()
    # The stand-in dies of it, as srun does before its tasks are there.
    assert "SIGUSR1: " in said
    assert "saved; requeued" in said
    assert job.asked_for("scontrol requeue") == ["scontrol requeue 4711"]


def test_undisturbed_the_script_trains_and_is_not_requeued(start: Start) -> None:
    job = start("nowhere")
    said = job.end()
    assert job.process.returncode == 0, said
    assert "done: " in said
    assert len(job.asked_for("torch.distributed.run")) == 1
    assert job.asked_for("scontrol requeue") == []


def test_wrong_settings_are_still_refused_without_a_signal(start: Start) -> None:
    job = start("find_recipe")
    job.wait_until_there()
    # The stand-in that checks the settings finds them wrong.
    (checker,) = children_of(job.process.pid)
    os.kill(checker, signal.SIGKILL)
    job.end()
    assert job.process.returncode == 2
    assert job.asked_for("scontrol requeue") == []


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
