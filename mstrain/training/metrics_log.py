"""What a run writes down as it goes: lines of progress, `metrics.jsonl`, TensorBoard, `ranks.json`.

Only the first rank writes. A run that resumes from a checkpoint first drops the lines of steps
that it is about to make again, so that its journal reads like that of an undisturbed run.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from msdata.core.checked_json import Count, parse_json, read_json
from msdata.core.files import open_known, storage_error, write_whole
from msdata.core.text import duration_text
from msdata.errors import DataError, needing
from msdata.topology import node_name
from mstrain.config import LogConfig, TrainConfig
from mstrain.distributed import Ranks
from mstrain.training.cache_hits import hit_rate

_NAME, _RANKS_NAME = "metrics.jsonl", "ranks.json"
# Of a line, what TensorBoard draws.
_CURVES = (
    *("loss", "validation_loss", "learning_rate", "gradient_norm", "samples_per_s"),
    *("data_wait_fraction", "hit_rate", "forecast_hit_rate"),
)


class Journal:
    """The journal of one run; a context manager.

    Args:
        run: the run's folder.
        config: what is written.
        is_writer: False on all ranks but the first, whose journal does nothing.
        is_quiet: show no lines of progress, which go to stderr.
    """

    def __init__(
        self,
        run: Path,
        config: LogConfig,
        *,
        is_writer: bool,
        is_quiet: bool = False,
    ) -> None:
        self._path = run / _NAME
        self._folder = run / "tensorboard"
        self._config, self._is_writer, self._is_quiet = config, is_writer, is_quiet
        self._board: Any = None

    def open(self, step: int) -> Journal:
        """Begins to write after a step.

        Raises:
            MissingPackageError: TensorBoard is asked for and not installed.
            StorageError: the file system refused.
        """
        if self._is_writer:
            _drop_after(self._path, step)
            if self._config.tensorboard:
                self._board = _open_board(self._folder, step)
        return self

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            kind: "step" or "epoch".
            values: `step` and what there is to say; None stands for unknown.

        Raises:
            StorageError: the file system refused.
        """
        if not self._is_writer:
            return
        line = json.dumps({"kind": kind, **{n: _plain(v) for n, v in values.items()}})
        try:
            fd = open_known(self._path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(fd, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        if self._board is not None:
            for name in _CURVES:
                if _plain(values.get(name)) is not None:
                    self._board.add_scalar(f"{kind}/{name}", values[name], values["step"])
        self.say(sentence(kind, values))

    def say(self, text: str) -> None:
        """Shows a line of progress."""
        if self._is_writer and not self._is_quiet:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *of_error: object) -> None:
        if self._board is not None:
            self._board.close()


def read_journal(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's journal; one that a crash cut short is left out.

    A model file has none.

    Raises:
        StorageError: the file system refused.
    """
    path = run / _NAME
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error("read", path, error) from error
    lines = []
    for line in text.splitlines():
        try:
            found = parse_json(line, path, cure="")
            found.read_as(_Line)
        except DataError:
            continue
        lines.append(found.value)
    return lines


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What is read of a line again."""

    IGNORES_UNKNOWN = True

    kind: str
    step: Count
    epoch: Count = 0
    loss: float | None = None
    validation_loss: float | None = None
    samples_per_s: float | None = None
    data_wait_fraction: float | None = None
    hit_rate: float | None = None
    forecast_hit_rate: float | None = None


def sentence(kind: str, values: Mapping[str, Any]) -> str:
    """A line of the journal for people."""
    text = f"epoch {values['epoch'] + 1}/{values['num_epochs']}"
    if kind == "step":
        text += f"  step {values['step']:,}/{values['num_steps']:,}"
    text += f"  loss {values['loss']:.4f}"
    if values.get("validation_loss") is not None:
        text += f"  validation {values['validation_loss']:.4f}"
        text += " (best)" if values["is_best"] else ""
    text += f"  {values['samples_per_s']:,.0f} samples/s"
    text += f"  data wait {values['data_wait_fraction']:.1%}"
    if values.get("hit_rate") is not None:
        text += f"  hits {values['hit_rate']:.1%}"
        if values.get("forecast_hit_rate") is not None:
            text += f" (forecast {values['forecast_hit_rate']:.1%})"
    if kind == "epoch":
        text += f"  in {duration_text(values['seconds'])}"
    return text


def hit_values(hits: dict[str, int] | None, forecast: dict[str, int] | None) -> dict[str, Any]:
    """The entries of a line that tell of the cache."""
    return {
        "hits": hits,
        "forecast_hits": forecast,
        "hit_rate": hit_rate(hits),
        "forecast_hit_rate": hit_rate(forecast),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in read_journal(path.parent) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _open_board(folder: Path, step: int) -> Any:
    with needing("the log needs TensorBoard", "train", ", or give log.tensorboard=false"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


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
    """Writes where the ranks are, to `RUN/ranks.json`; all of them call it.

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
    ranks.on_first(
        lambda: write_whole(run / _RANKS_NAME, json.dumps(told, indent=1).encode() + b"\n")
    )


def read_placement(run: Path) -> list[Placement]:
    """Reads where the ranks of a run's last start were, in their order.

    Raises:
        DataError: the file is damaged.
        FileNotFoundError: there is none: no rank has started.
    """
    found = read_json(run / _RANKS_NAME, cure="start the run again", has_paths=False)
    return list(found.read_as(tuple[Placement, ...]))
