"""Jobs of seconds on a real Slurm: arrays that fetch and search, an example, all benchmarks."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import fetching
import pytest
import training
from fake_services.faults import FaultPlan
from slurm_cluster import SlurmCluster, wait_until

from benchmarks.__main__ import QUESTIONS as BENCHMARKS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "fetch.sh"
BENCH = ROOT / "slurm" / "bench_io.sh"
EXAMPLES = ROOT / "docs" / "examples"
TIMEOUT_S = 300
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3 * TIMEOUT_S)]


def test_an_array_of_jobs_fetches_a_catalogue_and_keeps_the_rate(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 8)
    out, rate = tmp_path / "objects", 24
    with fetching.standins() as running:
        services = fetching.services_file(
            tmp_path / "services.toml", running.url, requests_per_s=float(rate)
        )
        words = ("--array=0-2%2", str(SCRIPT), str(catalog), str(out), "--services", str(services))
        job = cluster.submit(
            f"--output={tmp_path}/log-%a",
            *words,
            PYTHONPATH=str(ROOT),
            PYTHON=sys.executable,
            NO_PROXY="*",
        )
        wait_until(
            "end of the array",
            lambda: not cluster.run("squeue", "--noheader", "--job", job).strip(),
            TIMEOUT_S,
        )
        logs = [(tmp_path / f"log-{n}").read_text() for n in range(3)]
        times_s = running.times_s("ps1")
    for number, text in enumerate(logs):
        assert f"slice {number}/3 of" in text, text
        assert "2 at a time" in text, text
        assert "0 cannot be had" in text, text
    assert len(times_s) == 6 * 8
    assert fetching.most_in_a_second(times_s) <= rate
    for sample_id, ra, dec in fetching.rows_of(catalog):
        fetching.assert_object(out, sample_id, fetching.expected_sample(FaultPlan(), 0, ra, dec))


def test_an_array_of_jobs_searches_together_and_a_preempted_one_resumes(
    cluster: SlurmCluster, galaxies: Path, tmp_path: Path
) -> None:
    study, num_trials = tmp_path / "study", 2
    settings = {**training.SETTINGS, "epochs": "4"}
    words = [str(ROOT / "slurm" / "tune.sh"), "demo", str(galaxies), str(study)]
    words += ["--trials", str(num_trials), "--pruner", "none"]
    words += ["--search", "learning_rate=log:1e-4..1e-2", "hidden=8,16", "--seed", "1"]
    words += [f"{n}={v}" for n, v in settings.items() if n != "hidden"]
    job = cluster.submit(
        f"--output={tmp_path}/log-%a",
        *("--array=0-1", "--ntasks-per-node=1", *words),
        PYTHONPATH=str(ROOT),
        PYTHON=sys.executable,
    )
    first = study / "trial-00000"
    wait_until("first steps", lambda: len(training.losses(first)) >= 2, TIMEOUT_S)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_0", f"{job}_1")
    wait_until(
        "end of the array",
        lambda: not cluster.run("squeue", "--noheader", "--job", job).strip(),
        TIMEOUT_S,
    )
    logs = "".join((tmp_path / f"log-{n}").read_text() for n in range(2))
    assert "saved; requeued, to resume at the same step" in logs, logs
    assert f"{num_trials} trials: {num_trials} complete" in logs, logs
    said = "".join(path.read_text() for path in study.glob("logs/*/*.log"))
    assert "resumed: " in said, said
    table = list(csv.DictReader((study / "trials.csv").read_text().splitlines()))
    assert [(row["trial"], row["state"]) for row in table] == [
        (str(n), "complete") for n in range(num_trials)
    ]
    # Every step of every trial once, whoever made it.
    for number in range(num_trials):
        assert len(training.losses(study / f"trial-{number:05d}")) == 5 * 4
    assert not list(Path("/dev/shm").glob("msdata-*-tune-*"))


def test_the_example_of_the_guide_trains_on_two_nodes_and_resumes(
    cluster: SlurmCluster, galaxies: Path, tmp_path: Path
) -> None:
    program = (str(EXAMPLES / "ddp_resume.py"), str(galaxies), str(tmp_path / "state.pt"))
    positions = []
    for number in range(2):
        job = cluster.submit(
            f"--output={tmp_path}/log-{number}",
            *("--nodes=2", str(EXAMPLES / "cluster_job.sh"), *program),
            PATH=f"{Path(sys.executable).parent}:{cluster.environ()['PATH']}",
            PYTHONPATH=str(ROOT),
            RANKS_PER_NODE="2",
        )
        fields = cluster.wait(job, TIMEOUT_S)
        text = (tmp_path / f"log-{number}").read_text()
        assert fields["JobState"] == "COMPLETED", text
        positions += [int(found) for found in re.findall(r"'position': (\d+)", text)]
    # Two steps of eight samples each, over four ranks.
    assert positions == [16, 32]


QUESTIONS = [name for name in ("limit", "loaders", "cache", "scale") if name in BENCHMARKS]
BENCH_SAMPLES = 64


def test_all_benchmarks_run_on_two_nodes_and_end_with_the_report(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--nodes=2", str(BENCH), str(out), "--quick", "--mock", str(BENCH_SAMPLES))
    job = cluster.submit(
        f"--output={tmp_path}/log",
        *words,
        PYTHONPATH=str(ROOT),
        PYTHON=sys.executable,
        PEERS="ours_tar,bare_map",
    )
    fields = cluster.wait(job, 2 * TIMEOUT_S)
    text = (tmp_path / "log").read_text()
    assert fields["JobState"] == "COMPLETED", text
    assert cluster.processes(job) == {}
    assert [p.name for p in Path("/dev/shm").glob(f"msdata-*-{job}-*")] == [], text
    page = (out / "report.html").read_text()
    # After the questions the history of the race.
    assert page.count("<section>") == len(QUESTIONS) + 1
    results = {name: json.loads((out / f"{name}.json").read_text()) for name in QUESTIONS}
    assert all(result["quick"] and result["shown"]["tables"] for result in results.values())
    assert set(results["loaders"]["contestants"]) == {"ours_tar", "bare_map"}
    cache, scale = (json.loads((out / "raw" / f"{n}.json").read_text()) for n in ("cache", "scale"))
    assert all(point["is_as_forecast"] for point in cache["points"])
    assert scale["is_slurm"]
    assert scale["nodes_per_machine"] == 2
    assert "nodes of a Slurm job that share one machine" in page
    for kind in ("strong", "weak"):
        points = scale["points"][kind]
        assert [point["nodes"] for point in points] == [1, 2]
        assert all(point["tiers"] == point["predicted_tiers"] for point in points)
        assert all(point["tiers"]["storage"] for point in points)
    # Twice the nodes miss less of the same data, each at the same rate.
    one, two = (point["samples_per_s"]["median"] for point in scale["points"]["strong"])
    assert two > one
    beyond = scale["beyond"]["curves"]["weak, growing storage"]
    assert [point["nodes"] for point in beyond] == [1 << k for k in range(11)]


def test_a_question_that_fails_leaves_the_others_and_the_exit_code_tells(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--nodes=1", str(BENCH), str(out), "--quick", "--mock", "64", "--workload", "stamps")
    job = cluster.submit(
        f"--output={tmp_path}/log",
        *words,
        PYTHONPATH=str(ROOT),
        PYTHON=sys.executable,
        PEERS="bare_map",
        MACHINE="nowhere.json",
        QUESTIONS="scale loaders typo",
    )
    fields = cluster.wait(job, TIMEOUT_S)
    text = (tmp_path / "log").read_text()
    assert fields["ExitCode"] == "1:0", text
    assert "nowhere.json does not exist" in text
    assert "failed: scale (exit code 2), typo (unknown question);" in text
    race = json.loads((out / "loaders_stamps.json").read_text())
    assert set(race["contestants"]) == {"bare_map"}
    assert (out / "report.html").read_text().count("<section>") == 2
