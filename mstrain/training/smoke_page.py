"""`python -m mstrain.training.smoke_page`: the page that ends the smoke test of a cluster.

`slurm/train_ddp.sh` runs it after a training on mock objects. It compares what the run says of
itself with what was asked for, and ends with exit code 1 if they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msdata.core.checked_json import Count, read_json
from msdata.core.text import duration_text
from msdata.errors import DataError, MsdataError
from mstrain.training.metrics_log import Placement, read_journal, read_placement

_WRONG = "WRONG"


def placement_lines(found: Sequence[Placement], num_ranks: int, *, has_gpus: bool) -> Iterator[str]:
    """Says what ran where, and whether that is what was asked for."""
    mark = "" if len(found) == num_ranks else f"{_WRONG}: {num_ranks} asked for, "
    nodes = list(dict.fromkeys(place.node for place in found))
    yield f"ranks      {mark}{len(found)} on {len(nodes)} node(s)"
    for node in nodes:
        mine = [(rank, place.device) for rank, place in enumerate(found) if place.node == node]
        if len(mine) > 1 and len({device for _, device in mine}) == 1:
            yield f"  {node}: ranks {', '.join(str(rank) for rank, _ in mine)} on {mine[0][1]}"
        else:
            yield f"  {node}: " + ", ".join(f"rank {rank} on {device}" for rank, device in mine)
    if has_gpus and any(place.device == "cpu" for place in found):
        yield f"devices    {_WRONG}: the job has GPUs, and ranks ran on the CPU"
    for name, kinds in (
        ("backend", {place.collectives for place in found}),
        ("images", {place.images for place in found}),
    ):
        mark = "" if len(kinds) == 1 else f"{_WRONG}: ranks differ: "
        yield f"{name:<10} {mark}{', '.join(sorted(kinds))}"


def epoch_lines(epochs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Says how the last epoch went, from the lines of kind "epoch" of the run's journal."""
    if not epochs:
        yield f"epochs     {_WRONG}: none was trained to its end"
        return
    last = epochs[-1]
    yield (
        f"epochs     {len(epochs)} of {last['num_epochs']}, loss {last['loss']:.3f}, the last in "
        f"{duration_text(last['seconds'])} at {last['samples_per_s']:,.0f} samples/s"
    )
    yield f"data wait  {last['data_wait_fraction']:.1%} of the last epoch"
    hits, forecast = last.get("hits"), last.get("forecast_hits")
    if hits is None:
        yield "hits       no cache"
    elif forecast is None:
        yield f"hits       {last['hit_rate']:.1%}; no forecast, since the job was requeued"
    else:
        mark = "" if hits == forecast else f"{_WRONG}: "
        tiers = ", ".join(f"{tier} {hits[tier]} of {forecast[tier]}" for tier in hits)
        yield (
            f"hits       {mark}{last['hit_rate']:.1%}, forecast {last['forecast_hit_rate']:.1%} "
            f"({tiers})"
        )


def page(run: Path, *, num_ranks: int, has_gpus: bool, split: str | None) -> list[str]:
    """The lines of the page that the run itself tells; no evaluation where `split` is None.

    Raises:
        MsdataError: the run's files are missing or damaged.
    """
    try:
        lines = list(placement_lines(read_placement(run), num_ranks, has_gpus=has_gpus))
        lines += epoch_lines([line for line in read_journal(run) if line["kind"] == "epoch"])
        if split is not None:
            path = run / f"evaluation-{split}.json"
            found = read_json(path, cure="evaluate again", has_paths=True)
            count = found["metrics"]["num_samples"].read_as(Count)
            lines.append(f"evaluated  {count} objects of split {split}: {run / 'report.html'}")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} not found: the run did not get so far") from error
    return lines


def main(argv: Sequence[str]) -> int:
    """Prints the page; returns the exit code: 1 if anything of the run is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mstrain.training.smoke_page")
    parser.add_argument("run", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--split")
    args = parser.parse_args(argv)
    try:
        lines = page(args.run, num_ranks=args.ranks, has_gpus=args.gpus, split=args.split)
    except MsdataError as error:
        print(f"smoke test: {error}", file=sys.stderr)
        return 1
    for line in lines:
        print(line)
    told = [line for line in lines if f" {_WRONG}: " in line]
    print(f"smoke test {'FAILED' if told else 'passed'}")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
