"""The cache that all trials of a node share; it stands alone since it owns loaders.

An arena's name carries user, job, data set and split, and its table the node's capacity: nothing
of batches, seeds or orders. So trials that give the same job map the same arena. A worker keeps it
from its first trial to its last, and fills it before, so that k trials cost storage one reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msdata
from msdata.core.text import bytes_text
from msdata.dataset.dataset import Split
from mstrain.config import DataConfig, TrainConfig
from mstrain.data.batches import cache_of
from mstrain.distributed import Stopped, StopRequest
from mstrain.tune.space import Dimension

_POLL_S = 0.1


def with_shared_cache(config: DataConfig, given: Sequence[str], token: str) -> DataConfig:
    """Settings of the loader with a cache that trials share, as far as the caller gave none.

    Args:
        config: the recipe's, with the caller's own settings.
        given: full names of the settings that the caller gave.
        token: names the study.
    """
    usual: dict[str, Any] = {
        "cache_gib": None,
        "cache_job": f"tune-{token}",
        "cache_warmup": "blocking",
        "cache_val": True,
    }
    return replace(config, **{n: v for n, v in usual.items() if f"data.{n}" not in given})


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What the trials of a node need beside the cache.

    Attributes:
        workers: workers on this node.
        batch_size: the largest batch of a trial.
    """

    workers: int
    batch_size: int


def reserved_for(base: TrainConfig, space: Sequence[Dimension], workers: int) -> Reserved:
    """The memory that trials need, by the largest batch that may be drawn."""
    ends = [end for d in space if d.name in ("batch_size", "batch_per_gpu") for end in d.ends()]
    known = [n for n in (base.batch_per_gpu, *ends) if n is not None]
    return Reserved(workers=workers, batch_size=max([base.batch_size, *known]))


@contextmanager
def shared_arena(
    splits: Sequence[Split],
    config: DataConfig,
    reserved: Reserved,
    stop: StopRequest,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Keeps this node's cache of a study, full if it is to be filled first.

    Args:
        splits: what trials train on, and what they validate on.
        config: settings of all trials' loaders.
        reserved: memory that is left to the trials.
        stop: ends the filling.
        say: shows a line of progress.

    Raises:
        Stopped: it was asked to stop.
    """
    cache = cache_of(config)
    with ExitStack() as stack:
        for split in splits[: 1 + config.cache_val] if cache is not None else ():
            batches = reserved.batch_size * (config.prefetch + 2) * split.sample_nbytes
            assert cache is not None
            kept = replace(cache, reserved_nbytes=reserved.workers * batches)
            # A loader that hands out nothing: it joins, fills and keeps the arena.
            loader = stack.enter_context(
                msdata.Loader(
                    *(split, 1),
                    topology=msdata.Topology(),
                    cache=kept,
                    threads=1,
                    prefetch=1,
                    columns=(),
                )
            )
            if config.cache_warmup == "blocking":
                _await_full(loader, stop)
                _tell(loader.stats(), split.name, len(split), say)
        yield


def _await_full(loader: msdata.Loader, stop: StopRequest) -> None:
    while not loader.stats().get("cache", {"filler": {"is_done": True}})["filler"]["is_done"]:
        if stop.is_requested:
            raise Stopped
        time.sleep(_POLL_S)


def _tell(stats: dict[str, Any], name: str, num_samples: int, say: Callable[[str], None]) -> None:
    if "cache" not in stats:
        return
    tiers = [stats["cache"][tier] for tier in ("local", "ssd") if tier in stats["cache"]]
    num_held, nbytes = sum(tier["filled"] for tier in tiers), stats["cache"]["filler"]["bytes"]
    rest = "" if num_held == num_samples else "; every epoch of every trial reads the rest"
    say(
        f"this node's cache holds {num_held:,} of {num_samples:,} samples of split {name!r}, for "
        f"which this worker read {bytes_text(nbytes)}{rest}"
    )
