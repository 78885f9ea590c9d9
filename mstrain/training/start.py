"""What a run starts from: found, loaded, said, kept in config.json, and held against at a resume.

Stands beside `initial_weights`, which knows files and tensors: here are run, ranks and journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msdata.core.checked_json import JsonValue
from msdata.core.terminal import shown_line
from msdata.dataset.dataset import Split
from msdata.dataset.index import file_sha256
from msdata.errors import MsdataError, UsageError
from mstrain.config import TrainConfig
from mstrain.distributed import Ranks
from mstrain.models.redshift_net import RedshiftNet
from mstrain.training.checkpoint import (
    checkpoint_path,
    find_last,
    has_config,
    read_config,
    write_config,
)
from mstrain.training.initial_weights import (
    Fit,
    Source,
    image_bands,
    load_weights,
    read_source,
    shown_names,
    target_of,
)

_MAX_KEPT = 100


def lines_of(
    fit: Fit, source: Source, config: TrainConfig, bands: Sequence[str]
) -> tuple[str, ...]:
    """What was loaded and what was not, a line for each kind.

    Args:
        fit: see `load_weights`.
        source: what it is of.
        config: settings of the training that starts.
        bands: bands of its images, see `image_bands`.
    """
    num_fresh = len(fit.reshaped) + len(fit.absent)
    lines = [
        f"started from {source.path} (sha256 {source.sha256[:12]}): {len(fit.loaded)} of "
        f"{len(source.weights)} tensors loaded"
    ]
    for name, was, now in fit.adapted:
        lines.append(f"{name} had {was} channels, has {now}: each is their mean times {was}/{now}")
    if fit.fresh_head:
        lines.append(f"the head is left fresh: {fit.fresh_head}")
    elif source.target is None:
        lines.append("the head was loaded by its shape: the file does not say what it tells")
    for names, what in (
        (fit.reshaped, "have another shape there and are left fresh"),
        (fit.absent, "are missing there and are left fresh"),
        (fit.unused, "of the source are not used"),
    ):
        if names:
            lines.append(f"{len(names)} tensors {what}: {shown_names(names)}")
    if num_fresh and config.optim.freeze_epochs:
        lines.append(f"{num_fresh} tensors are both fresh and frozen; give optim.freeze_epochs=0")
    if source.bands is not None and not fit.adapted and tuple(source.bands) != tuple(bands):
        lines.append(f"bands were {shown_names(source.bands, 12)}, are {shown_names(bands, 12)}")
    if source.scaling not in (None, config.augment.scaling):
        lines.append(f"pixels were scaled by {source.scaling}, are by {config.augment.scaling}")
    if config.augment.needs_statistics:
        lines.append("pixels are scaled by statistics of the new data, not of the source's")
    return tuple(shown_line(line) for line in lines)


def record_of(fit: Fit, source: Source) -> dict[str, Any]:
    """What config.json keeps of it."""
    kept = {**asdict(fit), "unused": fit.unused[:_MAX_KEPT], "num_unused": len(fit.unused)}
    return {"path": source.path, "file": source.file, "sha256": source.sha256, **kept}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a run starts from, and where that is said and kept; see `find_start`.

    Attributes:
        source: the weights.
        run: the run's folder.
        config: settings of the run.
        bands: bands of its images, see `image_bands`.
        ranks: all of them call it.
        say: shows a line of progress.
    """

    source: Source
    run: Path
    config: TrainConfig
    bands: Sequence[str]
    ranks: Ranks
    say: Callable[[str], None]

    def __call__(self, model: RedshiftNet) -> None:
        """Loads the weights into the fresh network, on every rank.

        Raises:
            DataError: they do not fit it.
            StorageError: the file system refused.
        """
        target = target_of(self.config)

        def load_first() -> None:
            fit = load_weights(model, self.source, target)
            write_config(self.run, {**read_config(self.run), "init": record_of(fit, self.source)})
            for line in lines_of(fit, self.source, self.config, self.bands):
                self.say(line)

        self.ranks.on_first(load_first)
        if not self.ranks.is_first:
            load_weights(model, self.source, target)


def find_start(
    run: Path,
    init: Path | None,
    config: TrainConfig,
    split: Split,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Start | None:
    """What a run starts from: None where it starts fresh, or has a checkpoint to resume from.

    Args:
        run: the run's folder.
        init: see `read_source`; None for nothing.
        config: settings of the run.
        split: what it is trained on.
        ranks: all of them call it; the first reads the file.
        say: shows a line of progress.

    Raises:
        UsageError: the source does not exist, is of another kind, or is not what a run that is to
            be resumed was started from; or layers are to be frozen that nothing is loaded into.
        DataError: the source is damaged.
        StorageError: the file system refused.
    """

    def read_first() -> dict[str, Any] | None:
        if find_last(run) is not None:
            if init is not None and (told := _check_resumed(run, init)):
                say(told)
            return None
        if init is not None:
            return vars(read_source(init))
        if not config.epochs:
            raise UsageError(
                "epochs=0 keeps the network of --init as it is, and there is none; give --init, or "
                "epochs=1 or more"
            )
        if config.optim.freeze_epochs:
            raise UsageError(
                f"optim.freeze_epochs={config.optim.freeze_epochs} needs --init: frozen layers "
                "must have learned something; give it, or optim.freeze_epochs=0"
            )
        return None

    found = ranks.on_first(read_first)
    if found is None:
        return None
    bands = image_bands(split.dataset.schema, config)
    return Start(source=Source(**found), run=run, config=config, bands=bands, ranks=ranks, say=say)


def recorded_init(run: Path) -> dict[str, Any] | None:
    """What the run was started from, see `record_of`; None where it started fresh."""
    content = read_config(run) if has_config(run) else {}
    if content.get("init") is None:
        return None
    found = JsonValue(content, run / "config.json", "restore it")["init"]
    for name in ("path", "sha256"):
        found[name].read_as(str)
    return found.read_as(dict[str, Any])


def _check_resumed(run: Path, init: Path) -> str:
    """Holds the source of a resume against that of the run's start; returns what is to be said.

    Raises:
        UsageError: the run was started from something else.
    """
    recorded, cure = recorded_init(run), "leave --init out to resume, or give another --out"
    if recorded is None:
        raise UsageError(f"{run} has a checkpoint and was not started from --init {init}; {cure}")
    try:
        found = file_sha256(checkpoint_path(init, "best") if init.is_dir() else init)
    except (OSError, MsdataError):
        found = ""
    if found == recorded["sha256"]:
        return ""
    if str(init.absolute()) != recorded["path"]:
        raise UsageError(
            f"{run} was started from {recorded['path']} (sha256 {recorded['sha256'][:12]}), got "
            f"--init {init}; {cure}"
        )
    state = "has changed since" if found else "cannot be read now"
    return shown_line(f"{init}, which {run} started from, {state}; a resume does not need it")
