"""What tells how unlike a training's an object is, and the file of a run that holds it.

`RUN/ood.msz` is an archive as model files are: numbers, no pickles, a SHA-256 at its end. `mstrain
flag --keep RUN` writes it, `mstrain export` takes it along, `mstrain predict` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msdata.core.checked_json import Count
from msdata.core.output_file import check_output
from msdata.errors import DataError, UsageError
from mstrain.data.batches import TensorBatch
from mstrain.embedding.flow import Flow
from mstrain.embedding.outlying import Space, neighbor_distance, sigma_of
from mstrain.evaluation.inference import Further
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.prediction import PredictionConfig
from mstrain.models.model_file import (
    FORMAT_VERSION,
    MARK,
    OOD_NAME,
    ModelFile,
    companion_file,
    is_model_file,
    write_model_file,
)
from mstrain.models.redshift_net import LAYERS, RedshiftNet
from mstrain.training.checkpoint import checkpoint_sha256

SIGMA, FLAGGED = "ood_sigma", "is_flagged"
DISTANCE, LOG_DENSITY = "ood_distance", "ood_log_density"
COLUMNS = (SIGMA, FLAGGED, DISTANCE, LOG_DENSITY)
_CURE = "run 'mstrain flag' with --keep again"
_FLOW = "flow/"
# Of neighbors kept in a run: a flow takes a hundredth.
_MAX_NBYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """What a fit is of.

    Attributes:
        checkpoint_sha256: SHA-256 of the checkpoint's file.
        checkpoint: "best" or "last".
        layer: the layer of the embeddings.
        data: the training's data set.
        fingerprint: its fingerprint.
    """

    checkpoint_sha256: str
    checkpoint: str
    layer: str
    data: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class OodFit:
    """How odd an object is, from its embedding.

    Attributes:
        space: coordinates of embeddings.
        k: number of the neighbor whose distance counts.
        reference: float32 (R, C), the training's coordinates; none beside a flow.
        flow: the training's density; None for distances to its neighbors.
        validation: float64 (V,), oddness of validation objects.
        flag_sigma: objects of at least that sigma are flagged; None where no flag was put.
        fitted_on: network, layer and data.
    """

    space: Space
    k: int
    reference: NDArray[np.float32]
    flow: Flow | None
    validation: Floats
    flag_sigma: float | None
    fitted_on: FittedOn

    def oddness(
        self,
        value_ND: NDArray[np.floating],
        own_N: NDArray[np.int64] | None = None,
        device: torch.device | str = "cpu",
    ) -> Floats:
        """Distance to the k-th neighbor, or minus the log density; float64 (N,).

        Args:
            value_ND: embeddings (N, D).
            own_N: int64 (N,), the reference that is the object itself, -1 for none.
            device: where it is computed.
        """
        coordinate_NC = self.space.of(value_ND)
        if self.flow is not None:
            return -self.flow.log_density(coordinate_NC, device)
        own_N = np.full(len(value_ND), -1, np.int64) if own_N is None else own_N
        return neighbor_distance(coordinate_NC, self.reference, self.k, own_N, device)

    def columns(self, oddness_N: Floats) -> dict[str, NDArray[Any]]:
        """The columns of tables: distance or density, sigma, and whether it is flagged."""
        sigma_N = sigma_of(oddness_N, self.validation)
        measure = (DISTANCE, oddness_N) if self.flow is None else (LOG_DENSITY, -oddness_N)
        found: dict[str, NDArray[Any]] = dict([measure, (SIGMA, sigma_N)])
        if self.flag_sigma is not None:
            found[FLAGGED] = sigma_N >= self.flag_sigma
        return found

    def of_batch(
        self, model: RedshiftNet, features: Tensor, batch: TensorBatch
    ) -> dict[str, NDArray[Any]]:
        """`columns` of a batch that a network predicts, from its pooled features."""
        values = model.embed(batch.images, batch.ebv, self.fitted_on.layer, features=features)
        # As tables of embeddings hold them; what they could not hold is as odd as can be.
        limits = torch.finfo(torch.float16)
        rounded = torch.nan_to_num(values, limits.max).clamp(limits.min, limits.max).half()
        return self.columns(self.oddness(rounded.cpu().numpy(), device=features.device))


@dataclass(frozen=True, kw_only=True)
class _Fields:
    format_version: Count
    format: Literal["mstrain ood fit"]
    k: Count
    share: float
    num_axes: Count
    is_flow: bool
    flag_sigma: float | None
    fitted_on: FittedOn


def write_fit(run: Path, fit: OodFit) -> Path:
    """Writes a fit into a run, whole or not at all.

    Raises:
        UsageError: the fit is of another checkpoint, too large to keep, or RUN is a file.
        StorageError: the file system refused.
    """
    path = check_keeping(run, fit.fitted_on)
    if fit.reference.nbytes > _MAX_NBYTES:
        raise UsageError(
            f"--keep takes at most {_MAX_NBYTES >> 20} MiB of training objects, got "
            f"{len(fit.reference):,} in {fit.reference.shape[1]} components; give "
            "--references 100000, or --density flow"
        )
    fields = _Fields(
        format_version=FORMAT_VERSION,
        format="mstrain ood fit",
        k=fit.k,
        share=fit.space.share,
        num_axes=fit.space.axes.shape[1],
        is_flow=fit.flow is not None,
        flag_sigma=fit.flag_sigma,
        fitted_on=fit.fitted_on,
    )
    tensors = {
        "mean": torch.from_numpy(fit.space.mean),
        "axes": torch.from_numpy(np.ascontiguousarray(fit.space.axes)),
        "validation": torch.from_numpy(np.sort(fit.validation)),
        "reference": torch.from_numpy(np.ascontiguousarray(fit.reference)),
    }
    if fit.flow is not None:
        tensors |= {_FLOW + name: value for name, value in fit.flow.state.items()}
    write_model_file(path, json.dumps(asdict(fields)).encode(), tensors, {}, {})
    return path


def check_keeping(run: Path, fitted: FittedOn) -> Path:
    """The file of a run's fit.

    Raises:
        UsageError: the embeddings are of another checkpoint than the run's, or RUN is a file.
    """
    if is_model_file(run):
        raise UsageError(f"--keep must be the folder of a training, got the file {run}")
    if checkpoint_sha256(run, fitted.checkpoint) != fitted.checkpoint_sha256:
        raise UsageError(
            f"--keep must be the run of the embeddings, but the {fitted.checkpoint} checkpoint of "
            f"{run} is another one; run 'mstrain embed' again"
        )
    check_output(run / OOD_NAME, MARK)
    return run / OOD_NAME


def read_fit(run: Path) -> OodFit | None:
    """Reads the fit of a run, or of a model file; None where it has none.

    Raises:
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    file = companion_file(run, OOD_NAME, _CURE)
    if file is None:
        return None
    fields = file.fields.read_as(_Fields)
    if wrong := _fault(file, fields):
        raise DataError(f"{file.path} is damaged: {wrong}; {_CURE}")
    state = {n.removeprefix(_FLOW): t for n, t in file.weights.items() if n.startswith(_FLOW)}
    mean, axes, validation, reference = (file.weights[name].numpy() for name in _DTYPES)
    return OodFit(
        space=Space(mean=mean, axes=axes, share=fields.share),
        k=fields.k,
        reference=reference,
        flow=Flow(num_axes=fields.num_axes, state=state) if fields.is_flow else None,
        validation=validation,
        flag_sigma=fields.flag_sigma,
        fitted_on=fields.fitted_on,
    )


_DTYPES: Mapping[str, torch.dtype] = {
    "mean": torch.float64,
    "axes": torch.float64,
    "validation": torch.float64,
    "reference": torch.float32,
}


def _fault(file: ModelFile, fields: _Fields) -> str:
    """What is wrong with a fit's numbers; empty for nothing."""
    for name, dtype in _DTYPES.items():
        tensor = file.weights.get(name)
        if tensor is None or tensor.dtype != dtype or not bool(torch.isfinite(tensor).all()):
            return f"{name} must be finite numbers of {dtype}"
    mean, axes, validation, reference = (file.weights[name] for name in _DTYPES)
    if mean.ndim != 1 or axes.shape != (len(mean), fields.num_axes):
        return "mean and axes must be of one length"
    if validation.ndim != 1 or not len(validation):
        return "validation must be a list of numbers"
    if reference.shape[1:] != (fields.num_axes,):
        return "reference must have a value per axis"
    if not fields.is_flow and not 1 <= fields.k < len(reference):
        return "k must be below the number of references"
    return "" if fields.fitted_on.layer in LAYERS else "its layer must be one of a network"


def flags_of(run: Path, config: PredictionConfig) -> Further | None:
    """What gives the columns of flags to predictions; None where the run has no fit.

    Args:
        run: the run's folder, or a model file.
        config: what is predicted.

    Raises:
        UsageError: the fit is of another checkpoint, or a column would have the name of one of its.
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    fit = read_fit(run) if config.has_flags else None
    if fit is None:
        return None
    if fit.fitted_on.checkpoint_sha256 != checkpoint_sha256(run, config.checkpoint):
        raise UsageError(
            f"{run}/{OOD_NAME} was fitted on another checkpoint than the {config.checkpoint} one; "
            "run 'mstrain embed' and 'mstrain flag' with --keep again, or give --no-flags"
        )
    taken = [name for name in config.columns if name in COLUMNS]
    if taken:
        raise UsageError(
            f"cannot take over the column {taken[0]!r} of the index: {run} writes its own; leave "
            "it out, or give --no-flags"
        )
    return fit.of_batch
