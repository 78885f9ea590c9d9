"""Weights that a training starts from: a run's, a model file's, or plain ones by name.

What fits by name and shape is loaded, and what does not is counted and said. Nothing in a file is
executed. A file is read by the first rank alone, which sends the tensors to the others. What it was
is kept in config.json, and held against at a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdata.augment.geometry import survey_names
from msdata.core.checked_json import JsonValue
from msdata.core.files import storage_error
from msdata.core.terminal import shown_line
from msdata.dataset.dataset import Split
from msdata.dataset.index import file_sha256
from msdata.errors import DataError, MsdataError, UsageError
from msdata.schema import Schema
from mstrain.config import TrainConfig
from mstrain.distributed import Ranks
from mstrain.models.model_file import SUFFIX, read_safetensors
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.target import Target
from mstrain.training.checkpoint import (
    checkpoint_path,
    find_last,
    has_config,
    read_config,
    read_tensors,
    read_trained,
    write_config,
)

_TORCH_SUFFIXES = (".pt", ".pth")
_HEAD, _STEM_WEIGHT = "head.", ".stem.0.weight"
# What wrappers of networks put before the names of parameters.
_WRAPPERS = ("module.", "_orig_mod.")
_MAX_NAME, _MAX_KEPT = 60, 100


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to start from; plain values and tensors, which ranks may send.

    Attributes:
        path: as it was given, absolute.
        file: the file that was read.
        sha256: digest of that file.
        weights: tensors by name.
        target: what its head tells; None where the file does not say.
        scaling: how its pixels were scaled; None likewise.
        bands: bands of its images in the order of channels; None likewise.
    """

    path: str
    file: str
    sha256: str
    weights: Mapping[str, Tensor]
    target: Mapping[str, Any] | None = None
    scaling: str | None = None
    bands: Sequence[str] | None = None


@dataclass(kw_only=True)
class Fit:
    """What of a source a network took, by names of tensors.

    Attributes:
        loaded: taken as they are.
        adapted: kernels of stems, averaged over input channels: (name, channels then, now).
        fresh_head: why the head stays at its fresh state; empty where it was loaded.
        reshaped: of another shape in the source, left at their fresh state.
        absent: not in the source, left at their fresh state.
        unused: of the source, which the network does not have.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: list[tuple[str, int, int]] = field(default_factory=list)
    fresh_head: str = ""
    reshaped: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def read_source(path: Path) -> Source:
    """Reads weights to start from.

    Args:
        path: a run's folder, whose best checkpoint is taken; a model file of `mstrain export`;
            `.safetensors`; or `.pt` or `.pth` with a state dict.

    Raises:
        UsageError: it does not exist, or is none of these.
        DataError: it is damaged, or holds no tensors.
        StorageError: the file system refused.
    """
    if not path.exists():
        raise UsageError(f"--init {path} does not exist; check the path")
    if path.is_dir() or path.suffix == SUFFIX:
        file, saved = read_trained(path, "best")
        config = _config_of(path, JsonValue(saved, file, "give another file")["config"].value)
        bands = image_bands(Schema.from_json(read_config(path)["schema"]), config)
        return _source(path, file, saved, config, bands)
    if path.suffix == ".safetensors":
        content: Any = read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        content = read_tensors(path, "copy it again, or save its state_dict() with torch.save")
    else:
        raise UsageError(
            f"--init must be a run's folder, MODEL{SUFFIX}, .safetensors or .pt, got {path}"
        )
    if isinstance(content, Mapping) and {"format_version", "config", "model"} <= content.keys():
        # A checkpoint out of a run's folder.
        return _source(path, path, content, _config_of(path, content["config"]))
    return _source(path, path, content)


def _config_of(path: Path, saved: Any) -> TrainConfig:
    """Settings of the source's training; raises UsageError that names the source."""
    try:
        return TrainConfig.from_dict(saved)
    except UsageError as error:
        raise UsageError(f"cannot start from {path}: {error}") from error


def image_bands(schema: Schema, config: TrainConfig) -> tuple[str, ...]:
    """Bands of all images in the order of channels, such as "unwise.W1"; numbers if unnamed."""
    images = [schema[name] for name in survey_names(schema, config.augment)]
    return tuple(f"{i.name}.{band}" for i in images for band in i.bands or range(i.shape[0]))


def target_of(config: TrainConfig) -> dict[str, Any]:
    """What a head tells, in which bins; heads that differ in it are not interchangeable."""
    target = Target.of(config.model)
    return {**asdict(target), "text": f"{target.known} in {config.model.num_bins} bins"}


def _source(
    path: Path,
    file: Path,
    content: Any,
    config: TrainConfig | None = None,
    bands: Sequence[str] | None = None,
) -> Source:
    """The tensors of a state dict, or of what wraps one; raises DataError where none is there."""
    for name in ("average", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    weights = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value):
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
            weights[name] = value.detach()
    if not weights:
        raise DataError(f"{path} holds no tensors by name; give a state dict, or a run's folder")
    try:
        digest = file_sha256(file)
    except OSError as error:
        raise storage_error("read", file, error) from error
    return Source(
        path=str(path.absolute()),
        file=str(file.absolute()),
        sha256=digest,
        weights=weights,
        target=None if config is None else target_of(config),
        scaling=None if config is None else config.augment.scaling,
        bands=bands,
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is real numbers that its file really holds."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    nbytes = tensor.numel() * tensor.element_size()
    return nbytes <= tensor.untyped_storage().nbytes() and not tensor.is_complex()


@torch.no_grad()
def load_weights(model: RedshiftNet, source: Source, target: Mapping[str, Any]) -> Fit:
    """Loads what fits into a fresh network; `target` is what its head is to tell, see `target_of`.

    Raises:
        DataError: no kernel of an encoder fits, or one that does has values that are not finite.
    """
    mine, theirs = model.state_dict(), source.weights
    fit = Fit(unused=[name for name in theirs if name not in mine])
    fit.fresh_head = _why_fresh(mine, source, target)
    for name, tensor in mine.items():
        found = theirs.get(name)
        if name.startswith(_HEAD) and fit.fresh_head:
            continue
        if found is None:
            fit.absent.append(name)
        elif (
            found.shape == tensor.shape and found.is_floating_point() == tensor.is_floating_point()
        ):
            tensor.copy_(_finite(found, name, source))
            fit.loaded.append(name)
        elif name.endswith(_STEM_WEIGHT) and _differ_in_channels(found, tensor):
            tensor.copy_(_averaged(_finite(found, name, source), tensor.shape[1]))
            fit.adapted.append((name, found.shape[1], tensor.shape[1]))
        else:
            fit.reshaped.append(name)
    # Counts and biases fit many a network.
    if not any(mine[name].ndim == 4 for name in fit.loaded):
        (was, has), (name, wanted) = next(iter(theirs.items())), next(iter(mine.items()))
        raise DataError(
            f"cannot start from {source.path}: no kernel of an encoder fits; the first is "
            f"{was[:_MAX_NAME]} {tuple(has.shape)}, wanted {name} {tuple(wanted.shape)}; give "
            "weights of the same depth, width and names of images"
        )
    return fit


def _why_fresh(mine: Mapping[str, Tensor], source: Source, target: Mapping[str, Any]) -> str:
    """Why the source's head cannot be taken; empty where it can."""
    if source.target is not None and source.target != target:
        was, now = source.target["text"], target["text"]
        return f"it told {was}; this one {now if now != was else 'others, or in another order'}"
    for name in (n for n in mine if n.startswith(_HEAD)):
        if name not in source.weights:
            return f"the source has no {name}"
        if (was := source.weights[name].shape) != mine[name].shape:
            return f"{name} has shape {tuple(was)} there, {tuple(mine[name].shape)} here"
    # Else hidden units could pass for bins.
    for name in source.weights:
        if name.startswith(_HEAD) and name not in mine:
            return f"the source has {name[:_MAX_NAME]}, which this one does not"
    return ""


def _differ_in_channels(found: Tensor, wanted: Tensor) -> bool:
    is_kernel = found.ndim == 4 and found.shape[1] > 0
    return is_kernel and (found.shape[0], *found.shape[2:]) == (wanted.shape[0], *wanted.shape[2:])


def _averaged(kernel: Tensor, num_channels: int) -> Tensor:
    """A stem's kernel for other channels: an image that is equal in all of them looks the same."""
    mean = kernel.double().mean(1, keepdim=True) * (kernel.shape[1] / num_channels)
    return mean.expand(-1, num_channels, -1, -1)


def _finite(tensor: Tensor, name: str, source: Source) -> Tensor:
    """The tensor; raises DataError where it is not finite."""
    if count := int((~torch.isfinite(tensor.float())).sum()):
        raise DataError(
            f"cannot start from {source.path}: {count:,} of {tensor.numel():,} values of {name} "
            "are NaN or infinite; give another checkpoint"
        )
    return tensor


def _shown_names(names: Sequence[str], num_shown: int = 3) -> str:
    """The first names, each cut to a sane length."""
    shown = ", ".join(name[:_MAX_NAME] for name in names[:num_shown])
    return shown + (", ..." if len(names) > num_shown else "")


def lines_of(
    fit: Fit, source: Source, config: TrainConfig, bands: Sequence[str]
) -> tuple[str, ...]:
    """What was loaded and what was not, a line for each kind; `bands` from `image_bands`."""
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
            lines.append(f"{len(names)} tensors {what}: {_shown_names(names)}")
    if num_fresh and config.optim.freeze_epochs:
        lines.append(f"{num_fresh} tensors are both fresh and frozen; give optim.freeze_epochs=0")
    if source.bands is not None and not fit.adapted and tuple(source.bands) != tuple(bands):
        lines.append(f"bands were {_shown_names(source.bands, 12)}, are {_shown_names(bands, 12)}")
    if source.scaling not in (None, config.augment.scaling):
        lines.append(f"pixels were scaled by {source.scaling}, are by {config.augment.scaling}")
    if config.augment.needs_statistics:
        lines.append("pixels are scaled by statistics of the new data, not of the source's")
    return tuple(shown_line(line) for line in lines)


def record_of(fit: Fit, source: Source) -> dict[str, Any]:
    """What config.json keeps of it."""
    kept = {**asdict(fit), "unused": fit.unused[:_MAX_KEPT], "num_unused": len(fit.unused)}
    return {"path": source.path, "file": source.file, "sha256": source.sha256, **kept}


def find_start(
    run: Path,
    init: Path | None,
    config: TrainConfig,
    split: Split,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Callable[[RedshiftNet], None] | None:
    """What loads the weights that a run starts from; None for a fresh start, or a resume.

    All ranks call it; the first reads `init`, see `read_source`.

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
    source, target = Source(**found), target_of(config)
    bands = image_bands(split.dataset.schema, config)

    def initialize(model: RedshiftNet) -> None:
        """Loads the weights on every rank; raises DataError where they do not fit."""

        def load_first() -> None:
            fit = load_weights(model, source, target)
            write_config(run, {**read_config(run), "init": record_of(fit, source)})
            for line in lines_of(fit, source, config, bands):
                say(line)

        ranks.on_first(load_first)
        if not ranks.is_first:
            load_weights(model, source, target)

    return initialize


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
    """What is to be said of a resume's source, against that of the run's start.

    Raises UsageError where the run was started from something else.
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
