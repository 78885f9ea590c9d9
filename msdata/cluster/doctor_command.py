"""`msdata doctor`: finds faults of a job's nodes before the job starts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from msdata.cache.config import GIB
from msdata.cluster.checks import (
    Finding,
    Plan,
    clock_finding,
    even_gpus_finding,
    mpi_finding,
    names_text,
    node_findings,
    version_finding,
)
from msdata.cluster.facts import NodeFacts, node_facts
from msdata.cluster.nodes import StepError, answer, ask_nodes, try_mpi
from msdata.dataset.dataset import open_dataset
from msdata.errors import UsageError
from msdata.topology import SlurmJob, slurm_job

WHEN_INTERRUPTED = "nothing was changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata doctor`."""
    parser.add_argument("data", type=Path, nargs="?", help="folder of the data set")
    parser.add_argument(
        "--ranks-per-node", type=int, help="ranks per node (default: Slurm's GPUs or tasks, else 1)"
    )
    parser.add_argument("--threads", type=int, help="threads per rank")
    parser.add_argument("--memory-gib", type=float, help="cache memory per node, GiB")
    parser.add_argument(
        "--backend",
        choices=("auto", "reference", "dali", "torch"),
        default="auto",
        help="the run's data.backend, for nodes with GPUs (auto)",
    )
    parser.add_argument("--mpi", metavar="FLAVOR", help="try srun --mpi=FLAVOR, such as pmi2")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Checks this machine, or all nodes of the Slurm job; returns the exit code."""
    environ = dict(os.environ)
    if args.answer:
        answer(node_facts(args.data, environ), sys.stdin, lambda line: print(line, flush=True))
        return 0
    job = slurm_job(environ)
    if job is not None and job.step_task:
        # The first task of a step asks for all tasks.
        return 0
    plan = _plan(args, job)
    found = _findings(args, plan, job, environ)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        for line in finding_lines(found, plan.num_nodes):
            print(line)
        if job is None:
            print("\nonly this machine: run it in a Slurm job to check all its nodes")
    return int(any(not finding.is_good for finding in found))


def _plan(args: argparse.Namespace, job: SlurmJob | None) -> Plan:
    ranks = args.ranks_per_node
    if ranks is None:
        ranks = 1 if job is None else job.gpus_on_node or job.tasks_per_node or 1
    for name, value in (("ranks-per-node", ranks), ("threads", args.threads)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    if args.memory_gib is not None and args.memory_gib < 0:
        raise UsageError(f"--memory-gib must be at least 0, got {args.memory_gib}")
    num_shards = None
    if args.data is not None:
        num_shards = len(open_dataset(args.data).manifest.shards)
    return Plan(
        num_nodes=1 if job is None else job.num_nodes,
        ranks_per_node=ranks,
        threads_per_rank=args.threads,
        cache_nbytes=None if args.memory_gib is None else int(args.memory_gib * GIB),
        num_shards=num_shards,
        backend=args.backend,
    )


def _findings(
    args: argparse.Namespace, plan: Plan, job: SlurmJob | None, environ: Mapping[str, str]
) -> list[Finding]:
    """All findings; if the job's nodes do not answer, those of this node and the reason."""
    if job is None:
        if args.mpi is not None:
            raise UsageError(
                "--mpi needs a Slurm job, since it tries srun; submit the command as a job"
            )
        nodes = [node_facts(args.data, environ)]
        return [*node_findings(nodes, plan, has_data=args.data is not None), version_finding(nodes)]
    found: list[Finding] = []
    try:
        nodes, clocks = ask_nodes(job, args.data, environ)
        found.append(clock_finding(clocks))
    except StepError as error:
        nodes = [node_facts(args.data, environ)]
        cure = "read srun's messages; check that all nodes have python and msdata"
        found.append(Finding(name="nodes", is_good=False, says=str(error), cure=cure))
    if args.mpi is not None:
        known, sizes = try_mpi(job, args.mpi, environ)
        found.append(mpi_finding(args.mpi, known, job.num_nodes, sizes))
    nodes = _as_bound_here(nodes, job)
    return [
        *node_findings(nodes, plan, has_data=args.data is not None),
        *([even_gpus_finding(nodes)] if any(facts.has_gpus for facts in nodes) else []),
        version_finding(nodes),
        *found,
    ]


def _as_bound_here(nodes: Sequence[NodeFacts], job: SlurmJob) -> list[NodeFacts]:
    """Replaces this node's binding by that of the step that runs this command."""
    if job.step_task is None:
        return list(nodes)
    allowed = len(os.sched_getaffinity(0))
    return [replace(f, cpus_allowed=allowed) if f.node == job.node else f for f in nodes]


def finding_lines(findings: Sequence[Finding], num_nodes: int) -> list[str]:
    """Formats findings: one line each, and one with the cure of each fault.

    Args:
        findings: the findings.
        num_nodes: nodes of the job.
    """
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        where = ""
        if num_nodes > 1 and finding.nodes:
            everywhere = len(finding.nodes) == num_nodes
            where = "all nodes: " if everywhere else f"{names_text(finding.nodes)}: "
        mark = "good " if finding.is_good else "WRONG"
        lines.append(f"{mark}  {finding.name:<{width}}  {where}{finding.says}")
        if not finding.is_good:
            lines.append(f"{'':5}  {'':<{width}}  -> {finding.cure}")
    return lines
