"""The data of a plan: a data set, an assumed one, or either as it would be packed with codes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.coding import ArrayCoding, encode
from msdata.dataset.coding_options import add_coding_arguments, codings_of, parse_quantize
from msdata.dataset.dataset import Dataset, Split
from msdata.errors import UsageError
from msdata.plan.forecast import Job
from msdata.plan.machine import machine_from
from msdata.plan.order import DEFAULT_BATCH_SIZE, DEFAULT_LAST
from msdata.plan.ownership import equal_nodes
from msdata.plan.report import build_report
from msdata.plan.weights import plan_weights
from msdata.topology import Topology

_GIB = 1 << 30

# 600 MB: the README's advice for a shard, about a thousand cutouts.
_SHARD_BYTES = 600_000_000
# Lengths of coded records scatter by a tenth: the mean of so many is known to less than a percent.
_MEASURED_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class PlanData:
    """The data of a plan: a split of a data set, or an assumed one.

    Attributes:
        name: title in the report.
        shard_sizes: int64 (num_shards,), samples.
        sample_bytes: bytes per record: one number, or int64 (num_samples,).
        decoded_bytes: bytes that each record decodes to; 0 for data that are not coded.
        recoded: how the records would be made, if they are not there: `options` of `msdata pack`,
            and `num_samples` and `relative_error` of the measured mean; None where there are none.
        redshift: float64 (num_samples,), or None.
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.
    """

    name: str
    shard_sizes: NDArray[np.int64]
    sample_bytes: int | NDArray[np.int64]
    decoded_bytes: int = 0
    recoded: dict[str, Any] | None = None
    redshift: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if not len(self.shard_sizes) or int(self.shard_sizes.sum()) < 1:
            raise UsageError(f"cannot plan {self.name}: it has no samples")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what the data are."""
    parser.add_argument("data", nargs="?", help="data set; omit it with --assume-samples")
    parser.add_argument("--split", default="train", help="split to plan (default: %(default)s)")
    parser.add_argument("--assume-samples", type=int, help="plan for this many samples")
    parser.add_argument("--assume-bytes", type=int, help="bytes per assumed sample")
    parser.add_argument(
        "--assume-shard-bytes",
        type=int,
        default=_SHARD_BYTES,
        help="bytes per assumed shard (default: %(default)s)",
    )
    coded = parser.add_argument_group(
        "the data as they would be after 'msdata pack' with these options",
        f"Records are measured on {_MEASURED_SAMPLES} samples of the data set, or assumed.",
    )
    add_coding_arguments(coded)
    coded.add_argument(
        "--assume-ratio", type=float, metavar="R", help="assume records that are R times smaller"
    )


def plan_data(args: argparse.Namespace, open_dataset: Callable[[Path], Dataset]) -> PlanData:
    """The data that the options name.

    Args:
        args: parsed options of `add_data_arguments`, and of weights.
        open_dataset: opens the data set unless one is assumed.

    Raises:
        UsageError: options are out of range or contradict each other.
    """
    ratio = args.assume_ratio
    is_measured = bool(args.quantize) or args.compress != "none"
    if ratio is not None and not 0 < ratio < math.inf:
        raise UsageError(f"--assume-ratio must be a number > 0 such as 6.4, got {ratio}")
    if ratio is not None and is_measured:
        raise UsageError("--assume-ratio takes the place of --quantize and --compress; give either")
    if args.assume_samples is not None:
        if is_measured:
            raise UsageError(
                "--quantize and --compress need a data set to measure; give --assume-ratio instead"
            )
        return _assumed(args)
    if args.data is None:
        raise UsageError("name a data set, or assume one by --assume-samples and --assume-bytes")
    split = open_dataset(Path(args.data)).split(args.split)
    data = _opened(args, split)
    if ratio is None and not is_measured:
        return data
    if split.is_coded:
        raise UsageError(f"{data.name} is coded already; plan it as it is")
    if ratio is not None:
        return _recoded(data, split.sample_nbytes / ratio, {"options": f"ratio {ratio:g}"})
    return _measured(args, data, split)


def _assumed(args: argparse.Namespace) -> PlanData:
    if args.assume_bytes is None or args.assume_bytes < 1 or args.assume_samples < 1:
        raise UsageError("--assume-samples and --assume-bytes must both be given and at least 1")
    nbytes, ratio = args.assume_bytes, args.assume_ratio
    if ratio is not None:
        nbytes = max(1, round(nbytes / ratio))
    per_shard = max(1, args.assume_shard_bytes // nbytes)
    num_shards = -(-args.assume_samples // per_shard)
    sizes = np.full(num_shards, per_shard, dtype=np.int64)
    sizes[-1] = args.assume_samples - per_shard * (num_shards - 1)
    return PlanData(
        name="assumed data",
        shard_sizes=sizes,
        sample_bytes=nbytes,
        decoded_bytes=0 if ratio is None else args.assume_bytes,
        recoded=None if ratio is None else {"options": f"ratio {ratio:g}"},
        weights=plan_weights(args, None, args.assume_samples),
    )


def _opened(args: argparse.Namespace, split: Split) -> PlanData:
    sizes = np.asarray(split.shard_sizes, dtype=np.int64)
    return PlanData(
        name=f"{args.data}, split {args.split}",
        shard_sizes=sizes,
        sample_bytes=split.record_nbytes,
        decoded_bytes=split.sample_nbytes if split.is_coded else 0,
        redshift=split.redshift,
        weights=plan_weights(args, split, int(sizes.sum())),
    )


def _recoded(data: PlanData, record_bytes: float, how: dict[str, Any]) -> PlanData:
    """The data with other records, in the same shards."""
    return replace(
        data,
        sample_bytes=max(1, round(record_bytes)),
        decoded_bytes=int(np.max(data.sample_bytes)),
        recoded=how,
    )


def _measured(args: argparse.Namespace, data: PlanData, split: Split) -> PlanData:
    codings = codings_of(split.schema, parse_quantize(args.quantize), args.compress)
    found = _record_sizes(split, codings, int(data.shard_sizes.sum()))
    words = [f"--quantize {q}" for q in args.quantize] + [f"--compress {args.compress}"]
    how = {
        "options": " ".join(words),
        "num_samples": len(found),
        "relative_error": float(found.std() / found.mean() / math.sqrt(len(found))),
    }
    return _recoded(data, float(found.mean()), how)


def _record_sizes(
    split: Split, codings: Sequence[ArrayCoding], num_samples: int
) -> NDArray[np.int64]:
    """Bytes of the records that at most 256 samples would have, always the same ones."""
    count = min(num_samples, _MEASURED_SAMPLES)
    numbers = np.sort(np.random.default_rng(0).choice(num_samples, count, replace=False))
    nbytes = []
    for number in numbers.tolist():
        sample = split[number]
        nbytes.append(sum(memoryview(encode(sample[c.name], c).data).nbytes for c in codings))
    return np.array(nbytes, np.int64)


def plan_job(
    split: Split,
    *,
    num_nodes: int = 1,
    ranks_per_node: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    memory_gib: float = 0.0,
    ssd_gib: float = 0.0,
    num_epochs: int = 10,
    num_trials: int = 1,
    rates: Mapping[str, float] | None = None,
    replay_epochs: int | None = None,
    by_nodes: Sequence[int] = (),
    remainder: str = DEFAULT_LAST,
    **options: Any,
) -> dict[str, Any]:
    """Predicts what a job reads from where, and how long an epoch takes, as `msdata plan` does.

        report = msdata.plan(data.split("train"), num_nodes=4, memory_gib=200, policy="locality")
        report["epochs"][1]["shares"]  # {"local": 0.97, "peer": 0.03, ...}

    Args:
        split: what is loaded, `msdata.open(path).split("train")`.
        num_nodes: nodes of the job.
        ranks_per_node: ranks, as GPUs, of each.
        batch_size: samples per step on each rank, as the `Loader` has it.
        memory_gib: GiB of the cache's memory tier per node.
        ssd_gib: GiB of its SSD tier per node.
        num_epochs: epochs of the job, the cold one included.
        num_trials: trainings that share one node's cache, as those of `mstrain tune`.
        rates: `machine.json` of `msdata probe` as a dict, bytes per second; None gives no times.
        replay_epochs: epochs to replay exactly; None means 15 million samples' worth.
        by_nodes: other numbers of nodes to predict for.
        remainder: what happens to an incomplete last batch, as in the `Loader`.
        **options: policy, seed, buffer_samples and weights, as in the `Loader`.

    Returns:
        Plain numbers, strings, lists and dicts, as `msdata plan --json` prints them.

    Raises:
        UsageError: an option is out of range, or options contradict each other.
        TypeError: an option is unknown.
    """
    job = Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=ranks_per_node),
        nodes=equal_nodes(
            num_nodes, memory_bytes=int(memory_gib * _GIB), ssd_bytes=int(ssd_gib * _GIB)
        ),
        shard_sizes=np.asarray(split.shard_sizes, dtype=np.int64),
        sample_bytes=split.record_nbytes,
        decoded_bytes=split.sample_nbytes if split.is_coded else 0,
        batch_per_rank=batch_size,
        last=remainder,
        **options,
    )
    if not job.num_steps:
        raise UsageError(f"{job.num_samples:,} samples do not fill a global batch")
    counts: Any = {"num_epochs": num_epochs, "num_trials": num_trials}
    counts |= {"replay_epochs": replay_epochs, "by_nodes": by_nodes}
    return build_report(job, machine_from(dict(rates or {})), redshift=split.redshift, **counts)
