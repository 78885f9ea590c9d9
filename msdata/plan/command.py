"""`msdata plan`: predict what a job will read from where, before it is submitted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.options import add_former
from msdata.core.output_file import PNG_MARK, check_output
from msdata.dataset.dataset import Dataset
from msdata.dataset.dataset import open_dataset as open_packed
from msdata.errors import UsageError
from msdata.plan.forecast import Job
from msdata.plan.machine import RATES, load_machine, machine_from
from msdata.plan.order import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_BUFFER_SAMPLES,
    DEFAULT_LAST,
    DEFAULT_POLICY,
    LAST,
    POLICIES,
)
from msdata.plan.ownership import Nodes
from msdata.plan.plan_data import PlanData, add_data_arguments, plan_data
from msdata.plan.rendering import draw_by_nodes, render_report
from msdata.plan.report import build_report
from msdata.plan.timing import Machine, by_nodes, on_nodes
from msdata.plan.weights import add_arguments as add_weights
from msdata.topology import Topology

_GIB = 1 << 30
_MOST_NODES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `msdata plan`."""
    add_data_arguments(parser)
    parser.add_argument(
        "--nodes", type=int, help="number of nodes (default: as many as listed capacities, or 1)"
    )
    parser.add_argument("--ranks-per-node", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--batch-per-rank", type=int, default=DEFAULT_BATCH_SIZE, help="default: %(default)s"
    )
    for tier in ("memory", "ssd"):
        parser.add_argument(
            f"--{tier}-gib",
            default="0",
            metavar="N[,N...]",
            help=f"GiB of the {tier} tier per node, or a list, one per node; 6x400,2x200 is six "
            "nodes of 400 and two of 200 (default: %(default)s)",
        )
    _add_order(parser)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--trials",
        type=int,
        default=1,
        metavar="K",
        help="also predict the reads of K trainings that share one node's cache, as the trials of "
        "'mstrain tune' do",
    )
    parser.add_argument(
        "--replay-epochs",
        type=int,
        help="epochs to replay exactly; the others are estimated (default: 15 million samples)",
    )
    _add_rates(parser)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument(
        "--by-nodes",
        default="",
        metavar="N[,N...]",
        help="also predict the reads per epoch on these numbers of equal nodes",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="PNG",
        help="plot hits and time against the numbers of --by-nodes, else powers of 2",
    )


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        # All but "sequential", see `closed_form.expect_epoch`.
        choices=POLICIES[:3],
        default=DEFAULT_POLICY,
        help="default: %(default)s, as in the Loader; slurm/train_ddp.sh with a cache on several "
        "nodes takes locality",
    )
    parser.add_argument(
        "--remainder",
        choices=LAST,
        default=DEFAULT_LAST,
        help="what happens to an incomplete last batch (default: %(default)s, as in the Loader)",
    )
    add_former(parser, "--last", "remainder", LAST)
    parser.add_argument("--buffer-samples", type=int, default=DEFAULT_BUFFER_SAMPLES)
    add_weights(parser)


def _add_rates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", type=Path, help="machine.json of 'msdata probe'")
    for name, meaning in (
        ("memory", "copies from memory, per node"),
        ("ssd", "reads from the SSD, per node"),
        ("network", "bytes received from peers, per node"),
        ("storage", "reads from shared storage, per node"),
        ("storage-total", "reads from shared storage, all nodes together"),
        ("decode", "what one core decodes coded records to"),
    ):
        parser.add_argument(
            f"--{name}-gib-per-s", type=float, metavar="GIB/S", help=f"{meaning} (1 GiB = 2**30 B)"
        )
    parser.add_argument(
        "--samples-per-s", type=float, help="samples per second that a GPU trains on"
    )
    parser.add_argument("--cores", type=float, metavar="N", help="cores per node that decode")


def run(args: argparse.Namespace, open_dataset: Callable[[Path], Dataset] = open_packed) -> int:
    """Plan a job and print the report.

    Args:
        args: parsed options of `add_arguments`.
        open_dataset: opens the data set unless one is assumed.

    Returns:
        0.

    Raises:
        UsageError: options are out of range or contradict each other.
    """
    if args.figure is not None:
        check_output(args.figure, PNG_MARK)
    data = plan_data(args, open_dataset)
    if args.epochs < 1:
        raise UsageError(f"--epochs must be at least 1, got {args.epochs}")
    job = _job(args, data)
    numbers = _node_numbers(args.by_nodes)
    _check_steps(job, numbers)
    machine = _machine(args)
    report = build_report(
        job,
        machine,
        num_epochs=args.epochs,
        replay_epochs=args.replay_epochs,
        redshift=data.redshift,
        by_nodes=numbers,
        num_trials=args.trials,
    )
    report["data"] |= {"name": data.name, "recoded": data.recoded}
    report["job"]["weights_of"] = args.weights
    if args.figure is not None:
        shown = sorted(set(numbers)) or _numbers_of_nodes(job.nodes.num_nodes)
        draw_by_nodes(by_nodes(job, machine, shown), args.figure)
    text = json.dumps(report, indent=2, allow_nan=False) if args.json else render_report(report)
    sys.stdout.write(text + "\n")
    return 0


def _job(args: argparse.Namespace, data: PlanData) -> Job:
    nodes = _nodes(args)
    return Job(
        topology=Topology(num_nodes=nodes.num_nodes, ranks_per_node=args.ranks_per_node),
        nodes=nodes,
        shard_sizes=data.shard_sizes,
        sample_bytes=data.sample_bytes,
        decoded_bytes=data.decoded_bytes,
        batch_per_rank=args.batch_per_rank,
        policy=args.policy,
        seed=args.seed,
        last=args.remainder,
        buffer_samples=args.buffer_samples,
        weights=data.weights,
    )


def _check_steps(job: Job, numbers_of_nodes: Sequence[int]) -> None:
    """Refuse a plan without steps: all its numbers would be 0."""
    for num_nodes in (job.topology.num_nodes, *numbers_of_nodes):
        if not on_nodes(job, num_nodes).num_steps:
            num_ranks = num_nodes * job.topology.ranks_per_node
            raise UsageError(
                f"--remainder drop leaves 0 steps per epoch on {num_nodes:,} nodes: "
                f"{job.num_samples:,} samples do not fill a global batch of {num_ranks:,} ranks x "
                f"{job.batch_per_rank}; give a smaller --batch-per-rank, or --remainder short"
            )


def _nodes(args: argparse.Namespace) -> Nodes:
    options = {"--memory-gib": args.memory_gib, "--ssd-gib": args.ssd_gib}
    listed = {option: _listed(option, text) for option, text in options.items()}
    num_nodes = max(map(len, listed.values())) if args.nodes is None else args.nodes
    if num_nodes < 1:
        raise UsageError(f"--nodes must be at least 1, got {num_nodes}")
    for option, gib in listed.items():
        if len(gib) not in (1, num_nodes):
            raise UsageError(
                f"{option} must be one number, or {num_nodes} for {num_nodes} nodes, got "
                f"{options[option]!r} ({len(gib)})"
            )
    memory, ssd = (
        np.array([int(g * _GIB) for g in gib * (num_nodes // len(gib))], dtype=np.int64)
        for gib in listed.values()
    )
    keys = np.arange(num_nodes, dtype=np.uint64)
    return Nodes(memory_bytes=memory, ssd_bytes=ssd, keys=keys)


def _listed(option: str, text: str) -> list[float]:
    """Capacities as they are listed, in GiB; "6x400" stands for six of 400."""
    found: list[float] = []
    for part in text.split(","):
        count, times, gib = part.rpartition("x")
        try:
            found += [float(gib)] * (min(int(count), _MOST_NODES) if times else 1)
        except ValueError:
            found.append(-1.0)
    if not found or not all(0 <= g < 2**33 for g in found):
        raise UsageError(
            f"{option} must be GiB of at least 0, or a list such as 400,400,200 or 2x400,200, got "
            f"{text!r}"
        )
    return found


def _machine(args: argparse.Namespace) -> Machine:
    fields: dict[str, Any] = {} if args.machine is None else load_machine(args.machine)
    for name in RATES:
        option = name.replace("_bytes_per_s", "_gib_per_s")
        value = getattr(args, option)
        if value is not None:
            fields[name] = value * (_GIB if option != name else 1)
    return machine_from(fields)


def _node_numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part]
    except ValueError:
        numbers = [0]
    if any(not 0 < n < _MOST_NODES for n in numbers):
        raise UsageError(f"--by-nodes must be numbers of nodes such as 1,2,4,8, got {text!r}")
    return numbers


def _numbers_of_nodes(asked: int) -> list[int]:
    powers = [2**k for k in range(max(4, (4 * asked).bit_length()))]
    return sorted({asked, *powers})
