"""`msdata probe`: measures this machine and saves the rates for `msdata plan`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msdata.cluster.probe import (
    Communicator,
    measure_decoding,
    measure_file,
    measure_memory_copy,
    measure_network,
    temporary_file,
)
from msdata.core.mpi import communicator
from msdata.core.options import num_cores
from msdata.core.output_file import check_output
from msdata.core.text import rate_text
from msdata.errors import MissingPackageError, MsdataError, StorageError, UsageError
from msdata.plan.machine import MARK, save_machine
from msdata.topology import from_env

_Value = TypeVar("_Value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata probe`."""
    parser.add_argument(
        "--storage",
        type=Path,
        metavar="PATH",
        help="directory on the shared storage, or a large file on it, which is only read",
    )
    parser.add_argument(
        "--ssd-dir",
        type=Path,
        metavar="PATH",
        help="directory on the node's SSD, or a large file on it",
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="measure between nodes; start one rank per node by MPI",
    )
    parser.add_argument(
        "--threads",
        default="1,2,4,8,16",
        metavar="N[,N...]",
        help="numbers of threads (%(default)s)",
    )
    for option, default, text in (
        ("--sample-bytes", 594_384, "size of a sample"),
        ("--file-gib", 2.0, "size of temporary files"),
        ("--memory-gib", 0.5, "buffer of the memory copy"),
        ("--seconds", 3.0, "duration of each measurement"),
        ("--out", Path("machine.json"), "file to write"),
    ):
        kind: Any = type(default)
        parser.add_argument(option, type=kind, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the saved JSON alone on stdout")


def run(args: argparse.Namespace, get_comm: Callable[[], Communicator] | None = None) -> int:
    """Measures the requested rates, prints and saves them.

    Args:
        args: the options that `add_arguments` declares.
        get_comm: returns the communicator of all ranks, one per node; called only for
            `--network`. None uses MPI's world.

    Returns:
        0.

    Raises:
        UsageError: an option is invalid.
        StorageError: a file cannot be read or written.
    """
    threads = _threads(args)
    comm = _communicator(args, get_comm)
    is_first = comm is None or comm.Get_rank() == 0

    def say(line: str) -> None:
        if is_first:
            sys.stderr.write(line + "\n")

    def of_first(work: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        return _by_all(comm, work if is_first else dict)[0]

    fields: dict[str, Any] = {"host": platform.node(), "sample_bytes": args.sample_bytes}
    fields["measured_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    if is_first:
        check_output(args.out, MARK)
    say("memory: copies of samples into batches")
    memory = of_first(partial(_memory, args, threads))
    fields |= {"memory_bytes_per_s": max(memory.values()), "memory_by_threads": memory}
    say("decode: coded samples into batches")
    fields |= of_first(partial(_decoding, args, threads))
    for name, path in (("ssd", args.ssd_dir), ("storage", args.storage)):
        if path is not None:
            say(f"{name}: cold reads of {path}")
            fields |= of_first(partial(_file, args, threads, name, path))
    if comm is not None:
        fields |= _between_nodes(args, comm, fields, say)
    if is_first:
        save_machine(args.out, fields)
        text = json.dumps(fields, indent=2) if args.json else render_fields(fields, args.out)
        sys.stdout.write(text + "\n")
    return 0


def _between_nodes(
    args: argparse.Namespace,
    comm: Communicator,
    fields: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the storage under the load of all nodes, and the network."""
    found: dict[str, Any] = {"hosts": comm.allgather(platform.node())}
    if args.storage is not None:
        say(f"storage: {comm.Get_size()} nodes at once")
        random = fields["storage"]["random"]
        best = [max(random, key=lambda threads: random[threads])]
        with ExitStack() as stack:
            # All files are written before any is read: the first exchange is the barrier.
            files = _by_all(comm, partial(_open_file, args, args.storage, stack))
            file = files[comm.Get_rank()][0]
            read = partial(measure_file, file, args.sample_bytes, best, budget_s=args.seconds)
            rates = _by_all(comm, read)
        found["storage_total_bytes_per_s"] = sum(r.best_random for r in rates)
    say("network: every rank sends and receives")
    found["network_bytes_per_s"] = measure_network(comm, args.sample_bytes)
    return found


def render_fields(fields: dict[str, Any], path: Path) -> str:
    """Formats the measured rates.

    Args:
        fields: the saved rates.
        path: file that holds them.

    Returns:
        Lines of text.
    """
    lines = [f"{fields['host']}, samples of {fields['sample_bytes']:,} bytes"]
    lines += _rates_by_threads("memory copy", fields["memory_by_threads"])
    if "decode_by_threads" in fields:
        lines += _rates_by_threads("decode to, LZ4", fields["decode_by_threads"])
    else:
        lines.append(f"decode: not measured: {fields['decode_skipped']}")
    for name in ("ssd", "storage"):
        if f"{name}_bytes_per_s" in fields:
            lines += _render_file(name, fields[name])
    if "storage_total_bytes_per_s" in fields:
        lines.append(_rate_line("storage, all nodes", fields["storage_total_bytes_per_s"]))
    if "network_bytes_per_s" in fields:
        lines.append(_rate_line("network, received", fields["network_bytes_per_s"]))
        if len(set(fields["hosts"])) < len(fields["hosts"]):
            lines.append(
                "  ranks shared a host, so this is not the network's rate: start one rank per node"
            )
    lines.append(f"saved: {path}; 'msdata plan --machine {path}' uses it")
    return "\n".join(lines)


def _render_file(name: str, rates: dict[str, Any]) -> list[str]:
    lines = [_rate_line(f"{name} sequential", rates["sequential"])]
    lines += _rates_by_threads(f"{name} random", rates["random"])
    if rates["write"] is not None:
        lines.append(_rate_line(f"{name} write", rates["write"]))
    if rates["cached_share"] is None:
        lines.append("  cold or not: unknown, mincore does not report on files you may not write")
    elif rates["is_cold"]:
        lines.append(f"  cold: at most {rates['cached_share']:.1%} of the pages stayed in memory")
    else:
        lines.append(
            f"  NOT COLD: {rates['cached_share']:.0%} of the pages stayed in memory (tmpfs?); "
            "these are rates of memory"
        )
    return lines


def _rate_line(label: str, nbytes_per_s: float) -> str:
    return f"{label:<22}{rate_text(nbytes_per_s):>14}"


def _rates_by_threads(label: str, rates: dict[int, float]) -> list[str]:
    return [
        _rate_line(label if i == 0 else "", rate) + f"  {threads} threads"
        for i, (threads, rate) in enumerate(rates.items())
    ]


def _threads_that_compute(threads: list[int]) -> list[int]:
    """More threads than cores only wait for each other."""
    return [n for n in threads if n <= num_cores()] or [1]


def _decoding(args: argparse.Namespace, threads: list[int]) -> dict[str, Any]:
    """What all cores decode to, and each of them; nothing without the package that decompresses."""
    budget_s = min(1.0, args.seconds)
    try:
        by_threads = {
            n: measure_decoding(args.sample_bytes, num_threads=n, budget_s=budget_s)
            for n in _threads_that_compute(threads)
        }
    except MissingPackageError as error:
        return {"decode_skipped": str(error)}
    most = max(by_threads)
    return {
        "decode_bytes_per_s": by_threads[most] / most,
        "decode_by_threads": by_threads,
        "cores": num_cores(),
    }


def _memory(args: argparse.Namespace, threads: list[int]) -> dict[int, float]:
    return {
        n: measure_memory_copy(
            args.sample_bytes,
            num_threads=n,
            buffer_bytes=int(args.memory_gib * (1 << 30)),
            budget_s=min(1.0, args.seconds),
        )
        for n in _threads_that_compute(threads)
    }


def _file(args: argparse.Namespace, threads: list[int], name: str, path: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        file, write = _open_file(args, path, stack)
        rates = measure_file(file, args.sample_bytes, threads, budget_s=args.seconds)
    described = {**asdict(rates), "write": write, "is_cold": rates.is_cold}
    return {f"{name}_bytes_per_s": rates.best_random, name: described}


def _open_file(args: argparse.Namespace, path: Path, stack: ExitStack) -> tuple[Path, float | None]:
    """The file to read, and its write rate if it is a temporary one."""
    if path.is_file():
        return path, None
    if not path.is_dir():
        raise UsageError(f"{path} is neither a directory nor a file; name one that exists")
    return stack.enter_context(temporary_file(path, int(args.file_gib * (1 << 30))))


def _threads(args: argparse.Namespace) -> list[int]:
    try:
        threads = [int(part) for part in args.threads.split(",")]
    except ValueError:
        threads = []
    if not threads or min(threads) < 1:
        raise UsageError(f"--threads {args.threads!r} must be numbers from 1, such as 1,4,16")
    if args.sample_bytes < 1 or args.seconds <= 0 or args.memory_gib <= 0 or args.file_gib <= 0:
        raise UsageError("--sample-bytes, --seconds, --memory-gib and --file-gib must be above 0")
    return threads


def _communicator(
    args: argparse.Namespace, get_comm: Callable[[], Communicator] | None
) -> Communicator | None:
    if not args.network:
        return None
    if get_comm is not None:
        return get_comm()
    topology = from_env()
    if topology.num_ranks < 2:
        raise UsageError(
            "--network needs at least two nodes: start one rank per node with srun or mpiexec"
        )
    world: Communicator = communicator(topology)
    return world


def _by_all(comm: Communicator | None, work: Callable[[], _Value]) -> list[_Value]:
    """The result of each rank's work; if one fails, all raise, so that none waits for it."""
    if comm is None:
        return [work()]
    values: list[_Value] = []
    fault = None
    try:
        values.append(work())
    except MsdataError as error:
        fault = f"rank {comm.Get_rank()}: {error}"
    answers = comm.allgather((values, fault))
    faults = [fault for _, fault in answers if fault is not None]
    if faults:
        raise StorageError("; ".join(faults))
    return [value for values, _ in answers for value in values]
