"""The batch scripts as files: what shellcheck says, and what they say to wrong usage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msdata.cluster.nodes import step_environ

FOLDER = Path(__file__).parents[2] / "slurm"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
EXAMPLE = FOLDER.parent / "docs" / "examples" / "cluster_job.sh"
# Handed to sbatch by users, or started by srun on the nodes.
STARTED = ("train_ddp.sh", "pack.sh", "fetch.sh", "bench_io.sh", "tune.sh", "node.sh", "rank.sh")
SUBMITTED = ("train_ddp.sh", "pack.sh", "fetch.sh", "bench_io.sh", "tune.sh")


def run(name: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        [FOLDER / name, *words], capture_output=True, text=True, env={**kept, **environ}
    )


def test_shellcheck_has_nothing_to_say() -> None:
    if not shutil.which("shellcheck"):
        assert not os.environ.get("CI"), "no shellcheck in CI: .ci/run installs it"
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    found = subprocess.run(
        ["shellcheck", "--external-sources", *SCRIPTS, FOLDER.parent / ".ci" / "run", EXAMPLE],
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
    )
    assert found.returncode == 0, found.stdout


def test_scripts_that_are_started_may_be() -> None:
    assert {p.name for p in SCRIPTS} >= {*STARTED, "job.sh", "wait.sh", "site.sh"}
    assert [name for name in STARTED if not os.access(FOLDER / name, os.X_OK)] == []


@pytest.mark.parametrize("name", SUBMITTED)
def test_a_batch_script_outside_of_slurm_says_how_to_submit_it(name: str) -> None:
    found = run(name)
    assert found.returncode == 2
    assert f"submit it: sbatch {name}" in found.stderr


def test_every_variable_of_the_block_is_used_and_every_variable_used_is_in_the_block() -> None:
    for name in SUBMITTED:
        text = (FOLDER / name).read_text()
        block = [line for line in text.splitlines() if line.startswith("# ") and "  " in line]
        named = {words[1] for words in map(str.split, block) if words[1].isupper()}
        code = "\n".join(
            line
            for path in (FOLDER / name, *(FOLDER / f"{n}.sh" for n in ("job", "node", "smoke")))
            for line in path.read_text().splitlines()
            if not line.lstrip().startswith("#")
        )
        assert named, name
        assert [v for v in sorted(named) if v not in code] == [], name


def job_script(tmp_path: Path, words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs words of bash in a job of two nodes."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n")
    scontrol.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", f'source "{FOLDER}/job.sh"; {words}'],
        capture_output=True,
        text=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable},
            **{"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", **environ},
        },
    )


@pytest.mark.parametrize(("num_gpus", "option"), [("4", "--numa-binding=node\n"), ("0", "")])
def test_ranks_are_bound_to_the_socket_of_their_gpu_if_they_have_one(
    tmp_path: Path, num_gpus: str, option: str
) -> None:
    (tmp_path / "numactl").symlink_to("/bin/true")
    torch = tmp_path / "torch"
    (torch / "distributed").mkdir(parents=True)
    words = f"module_dir() {{ echo {torch}; }}; numa_binding {num_gpus}"
    new, old = '"--numa-binding",', ""
    # An older torchrun would refuse the option, and without CUDA there is nothing to bind to.
    for known, cuda, wanted in ((new, "'13.0'", option), (old, "'13.0'", ""), (new, "None", "")):
        (torch / "distributed" / "run.py").write_text(known)
        (torch / "version.py").write_text(f"cuda: Optional[str] = {cuda}\n")
        assert job_script(tmp_path, words).stdout == wanted
    assert '"${bound[@]}"' in (FOLDER / "train_ddp.sh").read_text()


def test_gpus_per_task_become_the_nodes_for_steps_of_one_task(tmp_path: Path) -> None:
    given = {"SLURM_GPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPU_BIND": "single:1"}
    found = job_script(tmp_path, "env | grep SLURM_GPU | sort", **given).stdout.split()
    assert found == ["SLURM_GPUS_ON_NODE=4", "SLURM_GPUS_PER_NODE=4"]
    asked = step_environ(given)
    assert {n: v for n, v in asked.items() if "GPU" in n} == dict(w.split("=") for w in found)
    # Whoever asked per node gets what they asked for.
    given = {"SLURM_GPUS_PER_NODE": "h100:2", "SLURM_GPUS_ON_NODE": "2"}
    assert step_environ(given) == {**given, "SLURM_EXPORT_ENV": "ALL"}
    found = job_script(tmp_path, "env | grep SLURM_GPU | sort", **given).stdout.split()
    assert found == ["SLURM_GPUS_ON_NODE=2", "SLURM_GPUS_PER_NODE=h100:2"]


@pytest.mark.parametrize(
    ("tasks", "ranks", "says"),
    [
        ("3", "2", "3 tasks cannot be shared evenly by 2 nodes; give --ntasks-per-node"),
        ("4", "3", "batch_size=64 does not divide into 3 rank(s)"),
        ("4", "2", "tasks per node: 2, taken"),
    ],
)
def test_a_jobs_tasks_and_the_ranks_share_of_a_batch_are_looked_at_first(
    tmp_path: Path, tasks: str, ranks: str, says: str
) -> None:
    words = f"check_settings {ranks} demo epochs=2"
    words += ' && echo "tasks per node: $tasks_per_node, taken"'
    found = job_script(tmp_path, words, SLURM_NTASKS=tasks)
    assert says in found.stdout + found.stderr
    assert (found.returncode == 0) == ("taken" in says)


@pytest.mark.parametrize(
    ("gpus", "smi", "words", "says"),
    [
        ("2 2", "GPU 0: x", "2 torch", "looked at"),
        ("4 4", "GPU 0: x", "2 torch", "up to 2 GPU(s) of a node stay idle beside 2 ranks"),
        ("4 2", "GPU 0: x", "4 auto", "a node has 2 GPU(s) for 4 ranks; ask for them per node"),
        ("2 2", "  MIG 1g.18gb", "2 torch", "instances of MIG, of which a process can use one"),
        ("2 2", "GPU 0: x", "2 dali", "data.backend=dali takes DALI on a GPU, which"),
    ],
)
def test_gpus_that_ranks_cannot_use_are_refused_before_they_start(
    tmp_path: Path, gpus: str, smi: str, words: str, says: str
) -> None:
    for name, line in (("srun", f"printf '%s\\n' {gpus}"), ("nvidia-smi", f"echo '{smi}'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").touch()
    found = job_script(tmp_path, f"check_gpus {words}; say looked at", PYTHONPATH=str(tmp_path))
    assert says in found.stdout + found.stderr
    assert found.returncode == (0 if "looked at" in found.stdout else 2), found.stderr
