"""The batch scripts without arguments: a smoke test of the cluster, which ends with one page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "slurm" / "train_ddp.sh"
BENCH = ROOT / "slurm" / "bench_io.sh"
TIMEOUT_S = 400
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


def smoke(
    cluster: SlurmCluster, folder: Path, *words: str | Path, **environ: str
) -> tuple[dict[str, str], str]:
    """Submits a script without arguments; Slurm's fields of the job, and what it said."""
    variables = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **environ}
    options = ("--nodes=2", f"--chdir={folder}", f"--output={folder}/out")
    job = cluster.submit(*options, *map(str, words), **variables)
    fields = cluster.wait(job, TIMEOUT_S)
    assert cluster.processes(job) == {}
    assert [p.name for p in Path("/dev/shm").glob(f"msdata-*-{job}-*")] == []
    return fields, (folder / "out").read_text()


def page_of(folder: Path) -> dict[str, str]:
    """The page's lines by their first words."""
    (path,) = folder.glob("*-smoke-*/page.txt")
    lines = path.read_text().splitlines()
    return {line.split()[0]: line for line in lines} | {"all": "\n".join(lines)}


def test_a_training_without_arguments_tries_the_cluster_and_ends_with_one_page(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    environ = {"SLURM_SUBMIT_DIR": str(tmp_path), "SMOKE_DIR": str(tmp_path / "mstrain-smoke-x")}
    fields, text = smoke(cluster, tmp_path, "--ntasks-per-node=1", TRAIN, **environ)
    assert fields["JobState"] == "COMPLETED", text
    page = page_of(tmp_path)
    assert page["all"] in text
    # Nodes are numbered as they meet.
    told = {page[f"{node}:"].partition(": ")[2] for node in ("n0", "n1")}
    assert told == {"rank 0 on cpu", "rank 1 on cpu"}
    assert page["ranks"].split()[1:] == ["2", "on", "2", "node(s)"]
    assert page["backend"].split()[1] == "gloo"
    assert page["images"].split()[1] == "reference"
    assert page["epochs"].startswith("epochs     3 of 3, loss ")
    assert "of the last epoch" in page["data"]
    # Half of the data is in the nodes' memory, as the plan said.
    assert "WRONG" not in page["hits"]
    assert "%, forecast " in page["hits"]
    assert page["doctor"]
    assert "objects of split test" in page["evaluated"]
    for step in ("mock", "pack", "train", "evaluate"):
        assert f"{step} " in page["times"]
    assert "smoke test passed" in page["all"]
    assert f"sbatch --nodes=2 --ntasks-per-node=1 {TRAIN} resnet18_early DATA RUN" in page["all"]
    left = {path.name for path in (tmp_path / "mstrain-smoke-x").iterdir()}
    assert left == {"page.txt", "run"}


def test_gpus_that_no_rank_can_use_fail_the_smoke_test(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    options = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-task=1")
    environ = {"SMOKE_DIR": str(tmp_path / "mstrain-smoke-x"), "SMOKE_OBJECTS": "64"}
    environ |= {"CACHE_TRANSPORT": "zmq", "EVALUATE": "none"}
    fields, text = smoke(cluster, tmp_path, *options, TRAIN, **environ)
    assert fields["ExitCode"] == "1:0", text
    assert "step page failed with exit code 1" in text
    page = page_of(tmp_path)["all"]
    assert "WRONG: the job has GPUs, and ranks ran on the CPU" in page
    assert "1 GPU for 1 rank, of which torch can use 0" in page
    assert "smoke test FAILED" in page
    # What failed can be looked at.
    assert (tmp_path / "mstrain-smoke-x" / "data" / "dataset.json").exists()


def test_a_step_that_fails_ends_the_smoke_test_with_its_name_and_code(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    environ = {"SMOKE_DIR": str(tmp_path / "mstrain-smoke-x"), "SMOKE_OBJECTS": "-1"}
    fields, text = smoke(cluster, tmp_path, TRAIN, **environ)
    assert fields["ExitCode"] == "2:0", text
    assert "smoke test: step mock failed with exit code 2" in text


def test_benchmarks_without_arguments_try_the_cluster_and_end_with_one_page(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    # Two of the four, since test_slurm_short_jobs.py asks them all.
    environ = {"SMOKE_DIR": str(tmp_path / "bench-smoke-x"), "QUESTIONS": "limit cache"}
    fields, text = smoke(cluster, tmp_path, "--ntasks-per-node=2", BENCH, **environ)
    assert fields["JobState"] == "COMPLETED", text
    page = page_of(tmp_path)
    assert page["all"] in text
    for step in ("doctor", "limit", "cache"):
        assert f"{step} " in page["times"]
    assert page["doctor"].startswith("doctor     ")
    assert f"sbatch --nodes=2 --ntasks-per-node=2 {BENCH} OUT --data DATA" in page["all"]
    results = tmp_path / "bench-smoke-x" / "results"
    assert (results / "report.html").read_text().count("<section>") == 2
    assert not (results / "work").exists()


def test_a_question_that_fails_ends_the_smoke_test_with_its_name_and_code(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    environ = {"SMOKE_DIR": str(tmp_path / "bench-smoke-x"), "QUESTIONS": "scale limit"}
    fields, text = smoke(cluster, tmp_path, BENCH, MACHINE="nowhere.json", **environ)
    assert fields["ExitCode"] == "2:0", text
    assert "smoke test: step scale failed with exit code 2" in text
    assert not list(tmp_path.glob("*/page.txt"))
