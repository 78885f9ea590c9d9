"""Where a run's ranks are: `RUN/ranks.json`, written at each start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from msdata.core.checked_json import read_json
from msdata.core.files import write_whole
from msdata.topology import node_name
from mstrain.config import TrainConfig
from mstrain.distributed import Ranks

_NAME = "ranks.json"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One rank's place.

    Attributes:
        node: name of its node.
        device: "cpu", or number and model of its GPU.
        collectives: "nccl" or "gloo"; "none" where there is one rank.
        images: what makes its images: "reference", "dali" or "torch".
    """

    node: str
    device: str
    collectives: str
    images: str


def write_placement(run: Path, config: TrainConfig, ranks: Ranks) -> None:
    """Writes where the ranks are; all of them call it.

    Args:
        run: the run's folder.
        config: settings of the run.
        ranks: all of them.

    Raises:
        StorageError: the file system refused, on the first rank.
        FirstRankError: on the others, then.
    """
    device, is_on_gpu = str(ranks.device), ranks.device.type == "cuda"
    mine = Placement(
        node=node_name(),
        device=f"{device} {torch.cuda.get_device_name(ranks.device)}" if is_on_gpu else device,
        collectives="none" if ranks.count == 1 else "nccl" if is_on_gpu else "gloo",
        images=config.data.backend_on(ranks.device.type),
    )
    told = ranks.gather(asdict(mine))
    ranks.on_first(lambda: write_whole(run / _NAME, json.dumps(told, indent=1).encode() + b"\n"))


def read_placement(run: Path) -> list[Placement]:
    """Reads where the ranks of a run's last start were, in their order.

    Raises:
        DataError: the file is damaged.
        FileNotFoundError: there is none: no rank has started.
    """
    found = read_json(run / _NAME, cure="start the run again", has_paths=False)
    return list(found.read_as(tuple[Placement, ...]))
