"""`msdata doctor`: planted faults are found, named with their node, and come with a cure."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import packing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.cluster.checks import (
    ClockReading,
    Finding,
    Plan,
    clock_finding,
    even_gpus_finding,
    mpi_finding,
    node_findings,
    version_finding,
)
from msdata.cluster.facts import NodeFacts, file_system_of, node_facts
from msdata.cluster.nodes import answer, clock_readings

GIB = 1 << 30
VERSIONS = {"python": "3.11.7", "msdata": "0.1.0", "numpy": "2.0.0"}
SOUND = NodeFacts(
    node="n0",
    versions=VERSIONS,
    cpus_allowed=32,
    cpus_of_job=32,
    memory_free_nbytes=500 * GIB,
    shm_free_nbytes=500 * GIB,
    open_files=65536,
    open_files_most=65536,
    file_system="lustre",
    stripe_count=4,
    gpus_of_job=4,
    gpus_seen=4,
    gpus_of_torch=4,
    nccl="2.27.3",
    has_dali=True,
)
PLAN = Plan(
    num_nodes=2, ranks_per_node=4, threads_per_rank=8, cache_nbytes=300 * GIB, num_shards=100
)


def faults(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if not f.is_good]


def test_sound_nodes_have_nothing_wrong_and_one_line_a_check() -> None:
    nodes = [SOUND, replace(SOUND, node="n1", memory_free_nbytes=490 * GIB)]
    found = node_findings(nodes, PLAN, has_data=True)
    assert faults(found) == []
    assert all(f.nodes == ("n0", "n1") for f in found)
    assert len({f.name for f in found}) == len(found)
    (memory,) = (f for f in found if f.name == "memory")
    assert memory.says.startswith("490.00 GiB free")


@pytest.mark.parametrize(
    ("changes", "plan", "name", "says", "cure"),
    [
        ({"cpus_allowed": 1}, {}, "cpus", "bound to 1 of the 32 CPUs", "--cpu-bind=none"),
        ({"cpus_of_job": None}, {"ranks_per_node": 5}, "cpus", "32 CPUs for 5 ranks", "fewer"),
        ({"cpu_quota": 2.5}, {}, "cpus", "grants 2.5 CPUs' time", "ask for more CPUs"),
        ({"memory_free_nbytes": 304 * GIB}, {}, "memory", "300.00 GiB of cache", "--mem"),
        # On GPUs a rank needs 4 GiB.
        ({"memory_free_nbytes": 325 * GIB}, {}, "memory", "16.00 GiB of ranks", "--mem"),
        ({"shm_free_nbytes": 64 << 20}, {}, "shm", "64.00 MiB free", "mounted larger"),
        ({"shm_free_nbytes": 64 << 20}, {"cache_nbytes": None}, "shm", "torch", "--shm-size"),
        ({"open_files": 256}, {}, "open files", "256 files", "ulimit -n 4096"),
        ({"open_files": 9, "open_files_most": 9}, {}, "open files", "9 files", "administrators"),
        (
            {"has_infiniband": True, "locked_nbytes": 65536},
            {},
            "locked memory",
            "64.00 KiB of memory may be locked, and InfiniBand",
            "MEMLOCK",
        ),
        ({"file_system": None}, {}, "files", "does not see the data", "all nodes see"),
        ({"file_system": "nfs4"}, {}, "files", "one server for 2 nodes", "parallel file system"),
        ({"stripe_count": None}, {}, "files", "no stripe count", "lfs"),
        ({"stripe_count": 1}, {"num_shards": 2}, "files", "few servers", "lfs migrate -c 4"),
        ({"gpus_of_torch": 0, "nccl": None}, {}, "gpus", "torch can use 0", "CUDA build"),
        ({"gpus_of_torch": 0, "gpus_seen": 0}, {}, "gpus", "can use 0", "nvidia-smi"),
        ({"gpus_of_torch": None}, {}, "gpus", "cannot be imported", "msdata[train]"),
        ({"nccl": None}, {}, "gpus", "no NCCL", "CUDA build"),
        (
            {"gpus_of_job": 2, "gpus_of_torch": 2},
            {},
            "gpus",
            "2 GPUs for 4 ranks",
            "--gpus-per-node",
        ),
        (
            {"gpus_seen": 4, "mig_seen": 4, "gpus_of_torch": 1},
            {},
            "gpus",
            "4 MIG instances for 4 ranks: a process can use one",
            "RANKS_PER_NODE=1",
        ),
        ({"has_dali": False}, {}, "augmentation", "takes DALI on a GPU", "msdata[dali-cuda13]"),
    ],
)
def test_a_fault_of_one_node_is_found_and_that_node_named(
    changes: dict[str, Any], plan: dict[str, Any], name: str, says: str, cure: str
) -> None:
    nodes = [SOUND, replace(SOUND, node="n1", **changes)]
    wanted = {"ranks_per_node": 4, **plan}
    if name == "cpus" and "ranks_per_node" in plan:
        nodes[0] = replace(SOUND, cpus_allowed=64)
    (fault,) = faults(
        [
            f
            for f in node_findings(nodes, replace(PLAN, **wanted), has_data=True)
            if f.name == name or f.name not in ("gpus", "files")
        ]
    )
    assert fault.name == name
    assert fault.nodes == ("n1",)
    assert says in fault.says
    assert cure.replace("\\", "") in fault.cure


def test_where_dali_is_missing_another_backend_or_no_gpu_is_no_fault() -> None:
    facts = replace(SOUND, has_dali=False)
    plan = replace(PLAN, backend="torch")
    assert faults(node_findings([facts], plan, has_data=True)) == []
    facts = replace(SOUND, has_dali=None, gpus_of_job=None, gpus_seen=0, gpus_of_torch=None)
    found = node_findings([facts], PLAN, has_data=True)
    assert faults(found) == []
    assert "augmentation" not in {f.name for f in found}


def test_uneven_gpus_are_told_with_their_nodes() -> None:
    nodes = [SOUND, replace(SOUND, node="n1", gpus_of_job=2), replace(SOUND, node="n2")]
    found = even_gpus_finding(nodes)
    assert not found.is_good
    assert found.says == "2 GPUs on n1, 4 GPUs on n0, n2"
    assert "--gpus-per-node" in found.cure
    assert even_gpus_finding(nodes[::2]).is_good


def test_stripes_over_all_servers_are_never_too_few() -> None:
    facts = replace(SOUND, stripe_count=-1)
    plan = replace(PLAN, num_shards=1, num_nodes=64)
    assert faults(node_findings([facts], plan, has_data=True)) == []


def test_nodes_with_other_software_are_named() -> None:
    other = replace(SOUND, node="n2", versions={**VERSIONS, "numpy": "1.26.4", "torch": "2.7.0"})
    assert version_finding([SOUND, replace(SOUND, node="n1")]).is_good
    found = version_finding([SOUND, replace(SOUND, node="n1"), other])
    assert not found.is_good
    assert "numpy is 1.26.4 on n2, 2.0.0 on n0, n1" in found.says
    assert "torch is 2.7.0 on n2, none on n0, n1" in found.says


@given(
    st.floats(-100, 100),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=6),
)
def test_a_clock_is_read_to_within_its_reported_error(
    ahead_s: float, delays: list[tuple[float, float]]
) -> None:
    replies = []
    sent_s = 1000.0
    for there_s, back_s in delays:
        clock_s = sent_s + there_s + ahead_s
        came_s = sent_s + there_s + back_s
        replies.append((sent_s, came_s, {"node": "n1", "clock_s": clock_s}))
        sent_s = came_s + 1
    (reading,) = clock_readings(replies)
    assert abs(reading.ahead_s - ahead_s) <= reading.error_s + 1e-9
    assert reading.error_s <= min(there + back for there, back in delays) / 2 + 1e-9


def test_a_clock_is_blamed_only_where_the_answer_came_fast_enough_to_know() -> None:
    here = ClockReading(node="n0", ahead_s=0.0, error_s=0.01)
    late = ClockReading(node="n1", ahead_s=-3.0, error_s=0.01)
    slow = replace(late, error_s=2.5)
    assert "n0 is 3.0 s ahead of n1" in clock_finding([here, late]).says
    assert not clock_finding([here, late]).is_good
    assert clock_finding([here, slow]).is_good


def test_mpi_is_judged_by_what_processes_see() -> None:
    known = ["none", "pmi2", "pmix"]
    assert mpi_finding("pmi2", known, 2, [2, 2]).is_good
    alone = mpi_finding("pmi2", known, 2, [1, 1])
    assert (alone.is_good, alone.says) == (False, "under --mpi=pmi2 processes see 1 of 2")
    assert "pmix" in alone.cure
    assert "this Slurm lacks --mpi=pmi9" in mpi_finding("pmi9", known, 2, []).says
    assert "does not start" in mpi_finding("pmix", known, 2, []).says


def test_facts_survive_the_way_as_text_also_from_another_version() -> None:
    assert NodeFacts.from_json(SOUND.as_json()) == SOUND
    newer = json.dumps({**json.loads(SOUND.as_json()), "colour": "blue"})
    assert NodeFacts.from_json(newer) == SOUND


def test_a_node_answers_each_question_with_its_clock() -> None:
    said: list[str] = []
    answer(SOUND, io.StringIO("0\n1\n"), said.append)
    assert NodeFacts.from_json(said[0]) == SOUND
    assert [json.loads(text)["ping"] for text in said[1:]] == [0, 1]


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    deep = tmp_path / "a b" / "data"
    deep.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {escaped} lustre rw 0 0\n")
    assert file_system_of(deep, mounts) == "lustre"
    assert file_system_of(tmp_path, mounts) == "ext4"
    assert file_system_of(deep, tmp_path / "none") == "unknown"


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_lfs_and_nvidia_smi_are_asked_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "lfs", "#!/bin/sh\necho 8\n")
    program(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: H200'\necho 'GPU 1: H200'\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("msdata.cluster.facts._ask_torch", lambda: (2, "2.27"))
    facts = node_facts(tmp_path, {})
    assert (facts.stripe_count, facts.gpus_seen, facts.gpus_of_torch) == (8, 2, 2)
    monkeypatch.setattr("msdata.cluster.facts._DALI", "import no_such_package")
    program(
        tmp_path / "nvidia-smi",
        "#!/bin/sh\necho 'GPU 0: H200'\nprintf '  MIG 1g.18gb Device %s:\\n' 0 1 2\n",
    )
    facts = node_facts(tmp_path, {})
    assert (facts.gpus_seen, facts.mig_seen, facts.has_dali) == (3, 3, False)


def doctor(
    *words: str, before: tuple[str, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in packing.environment().items() if not k.startswith("SLURM")}
    return subprocess.run(
        [*before, sys.executable, "-m", "msdata", "doctor", *words],
        capture_output=True,
        text=True,
        env={**kept, **environ},
    )


def test_one_cpu_for_two_ranks_and_few_open_files_end_with_exit_code_1() -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    found = doctor(
        *("--ranks-per-node", "2", "--json"),
        before=("prlimit", "--nofile=200:200", "taskset", "--cpu-list", cpu),
    )
    assert found.returncode == 1, found.stderr
    wrong = {f["name"]: f for f in json.loads(found.stdout) if not f["is_good"]}
    assert set(wrong) == {"cpus", "open files"}
    assert "1 CPU for 2 ranks" in wrong["cpus"]["says"]


def test_a_cache_larger_than_the_machine_is_told_in_a_line_with_its_cure(
    packed: Callable[..., Path], tiny_source: Path
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS, "--format", "tar")
    found = doctor(str(data), "--memory-gib", "1000000")
    assert found.returncode == 1
    lines = found.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("WRONG  memory"))
    assert "-> plan a smaller cache" in lines[at + 1]
    assert any(line.startswith("good   files") for line in lines)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("/nowhere",), "/nowhere does not exist"),
        (("--ranks-per-node", "0"), "--ranks-per-node must be at least 1, got 0"),
        (("--memory-gib", "-1"), "--memory-gib must be at least 0, got -1.0"),
        (("--mpi", "pmi2"), "--mpi needs a Slurm job"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(words: tuple[str, ...], says: str) -> None:
    packing.assert_sentence(doctor(*words), code=2, says=[says])


# Two nodes behind an srun that plays them: what each says, by the environment.
FAKE_SRUN = f"""#!{sys.executable}
import json, os, sys, time
nodes = json.loads(os.environ["NODES"])
if "--mpi=list" in sys.argv:
    sys.exit(0)
for node in nodes:
    if "facts" in node:
        print(json.dumps(node["facts"]), flush=True)
if any("dies" in node for node in nodes):
    sys.exit("srun: error: n1: task 1: Exited with exit code 1")
for line in sys.stdin:
    for node in nodes:
        clock_s = time.time() + node["ahead_s"]
        said = dict(node=node["facts"]["node"], ping=int(line), clock_s=clock_s)
        print(json.dumps(said), flush=True)
"""


def in_job(tmp_path: Path, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    program(tmp_path / "srun", FAKE_SRUN)
    found = doctor(
        "--json",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        NODES=json.dumps(nodes),
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES="2",
        SLURMD_NODENAME="n0",
        SLURM_NTASKS_PER_NODE="2",
    )
    assert found.stderr == ""
    wrong = [f for f in json.loads(found.stdout) if not f["is_good"]]
    assert found.returncode == bool(wrong)
    return wrong


def test_a_node_whose_clock_or_software_differs_is_found_through_srun(tmp_path: Path) -> None:
    facts = json.loads(SOUND.as_json())
    other = {**facts, "node": "n1", "versions": {**VERSIONS, "numpy": "1.26.4"}}
    assert in_job(tmp_path, [{"facts": facts, "ahead_s": 0}] * 2) == []
    wrong = in_job(tmp_path, [{"facts": facts, "ahead_s": 0}, {"facts": other, "ahead_s": 30}])
    assert [f["name"] for f in wrong] == ["versions", "clocks"]
    assert "n1 is 30.0 s ahead of n0" in wrong[1]["says"]


def test_a_node_that_does_not_answer_is_told_with_sruns_words(tmp_path: Path) -> None:
    facts = json.loads(SOUND.as_json())
    wrong = in_job(tmp_path, [{"facts": facts, "ahead_s": 0}, {"dies": True}])
    (nodes,) = (f for f in wrong if f["name"] == "nodes")
    assert "2 nodes did not all answer through srun" in nodes["says"]
    assert "n1: task 1: Exited with exit code 1" in nodes["says"]


def test_of_the_tasks_of_a_step_only_the_first_speaks() -> None:
    found = doctor(SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="1", SLURM_STEP_ID="0", SLURM_PROCID="3")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
