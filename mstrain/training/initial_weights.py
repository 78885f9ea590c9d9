"""Weights that a training starts from: a run's, a model file's, or plain ones by name.

What fits by name and shape is loaded, and what does not is counted and said. Nothing in a file is
executed. A file is read by the first rank alone, which sends the tensors to the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdata.augment.geometry import survey_names
from msdata.core.checked_json import JsonValue
from msdata.core.files import storage_error
from msdata.dataset.index import file_sha256
from msdata.errors import DataError, UsageError
from msdata.schema import Schema
from mstrain.config import TrainConfig
from mstrain.models.model_file import SUFFIX, read_safetensors
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.target import Target
from mstrain.training.checkpoint import (
    read_config,
    read_tensors,
    read_trained,
)

_TORCH_SUFFIXES = (".pt", ".pth")
_HEAD, _STEM_WEIGHT = "head.", ".stem.0.weight"
# What wrappers of networks put before the names of parameters.
_WRAPPERS = ("module.", "_orig_mod.")
_NUM_SHOWN, _MAX_NAME = 3, 60


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
        return _trained(path)
    if path.suffix == ".safetensors":
        content: Any = read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        content = read_tensors(path, "copy it again, or save its state_dict() with torch.save")
    else:
        raise UsageError(
            f"--init must be a run's folder, MODEL{SUFFIX}, .safetensors or .pt, got {path}"
        )
    config = None
    if isinstance(content, Mapping) and {"format_version", "config", "model"} <= content.keys():
        # A checkpoint out of a run's folder.
        config = _config_of(path, content["config"])
    return _source(path, path, content, config)


def _trained(path: Path) -> Source:
    """Of a run's folder or a model file."""
    file, content = read_trained(path, "best")
    config = _config_of(path, JsonValue(content, file, "give another file")["config"].value)
    bands = image_bands(Schema.from_json(read_config(path)["schema"]), config)
    return _source(path, file, content, config, bands)


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
    """The tensors of a state dict, or of what a checkpoint wraps one in.

    Raises:
        DataError: none is there.
    """
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
    """Loads what fits into a fresh network.

    Args:
        model: the network; changed.
        source: see `read_source`.
        target: what its head is to tell, see `target_of`.

    Returns:
        What was loaded and what was not.

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
    count = int((~torch.isfinite(tensor.float())).sum())
    if count:
        raise DataError(
            f"cannot start from {source.path}: {count:,} of {tensor.numel():,} values of {name} "
            "are NaN or infinite; give another checkpoint"
        )
    return tensor


def shown_names(names: Sequence[str], num_shown: int = _NUM_SHOWN) -> str:
    """The first names, each cut to a sane length."""
    shown = ", ".join(name[:_MAX_NAME] for name in names[:num_shown])
    return shown + (", ..." if len(names) > num_shown else "")
