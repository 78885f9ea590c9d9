"""DALI pipelines that do what `reference` does: the only file that imports DALI.

A pipeline is stateless: the draws are inputs. A band is a frame of one channel ("FHWC"): DALI's
warp accepts many frames, not planes. Building the graph needs no GPU.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.geometry import Geometry
from msdata.augment.scaling import Curve, column
from msdata.augment.spec import AugmentSpec, blur_scale, blur_window, is_blurred
from msdata.errors import MissingPackageError, UsageError

# The bits of a float that are all set in NaN and infinities.
_EXPONENT_BITS = 0x7F800000
_TORCH_CURE = "; or use backend='torch' (data.backend=torch in mstrain), which needs torch alone"


class Lane:
    """One pipeline, which has one batch at a time.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
        is_interpolated: whether pixels lie between those of the arrays.
        device_id: number of the GPU; None for the CPU.
        num_threads: CPU threads.

    Attributes:
        geometries: the surveys' geometries in this pipeline.

    Raises:
        MissingPackageError: DALI is not installed.
        UsageError: DALI cannot use the GPU.
    """

    def __init__(
        self,
        spec: AugmentSpec,
        batch_size: int,
        *,
        is_interpolated: bool,
        device_id: int | None,
        num_threads: int,
    ) -> None:
        _check_dali()
        self.geometries = lane_geometries(spec, is_interpolated=is_interpolated)
        self._pipeline = make_pipeline(
            spec,
            batch_size,
            is_interpolated=is_interpolated,
            device_id=device_id,
            num_threads=num_threads,
        )
        try:
            self._pipeline.build()
        except RuntimeError as error:
            if device_id is None:
                raise
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"DALI cannot use GPU {device_id} ({reason}); look at nvidia-smi, or use "
                "device_id=None for the CPU"
            ) from error

    def start(self, inputs: dict[str, Any]) -> None:
        """Starts one batch.

        Args:
            inputs: values by input name, read without a copy: hold them unchanged until `outputs`
                returns.
        """
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)
        self._pipeline.schedule_run()

    def outputs(self) -> list[Any]:
        """Waits for the images of the batch; its inputs have been read then."""
        return [images.as_tensor() for images in self._pipeline.outputs()]


def _check_dali() -> None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        has_torch = importlib.util.find_spec("torch") is not None
        raise MissingPackageError(
            "the dali backend needs DALI; run pip install 'msdata[dali]', or 'msdata[dali-cuda13]' "
            "for CUDA 13" + (_TORCH_CURE if has_torch else "")
        ) from error


def as_frames(array_NBHW: NDArray[Any], *, is_pinned: bool) -> Any:
    """A batch's array as DALI takes it: frames of one channel.

    Args:
        array_NBHW: C-contiguous; DALI reads it in place, so hold it until the batch is done.
        is_pinned: whether it is page-locked.
    """
    from nvidia.dali import tensors

    return tensors.TensorListCPU(array_NBHW[..., None], "FHWC", is_pinned)


def repeated(values: NDArray[np.float32], num_samples: int) -> Any:
    """One array for all samples of a batch, without a copy."""
    import nvidia.dali.tensors as dali_tensors

    tensors: Any = dali_tensors
    return tensors.TensorListCPU.broadcast(tensors.TensorCPU(values), num_samples)


def lane_geometries(spec: AugmentSpec, *, is_interpolated: bool) -> tuple[Geometry, ...]:
    """The geometries of a pipeline: one place per pixel where whole pixels are only moved."""
    if is_interpolated:
        return spec.geometries
    return tuple(replace(g, oversampling=1) if g.is_native else g for g in spec.geometries)


def make_pipeline(
    spec: AugmentSpec,
    batch_size: int,
    *,
    is_interpolated: bool,
    device_id: int | None,
    num_threads: int,
) -> Any:
    """Defines a pipeline without building it, so that no GPU is needed.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
        is_interpolated: whether pixels lie between those of the arrays.
        device_id: number of the GPU; None for the CPU.
        num_threads: CPU threads.
    """
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=1,
    )
    with pipeline:
        bank = _input("bank", "FLOAT", 1) if spec.config.noise else None
        images = [
            _survey_image(spec, k, geometry, bank=bank, is_gpu=device_id is not None)
            for k, geometry in enumerate(lane_geometries(spec, is_interpolated=is_interpolated))
        ]
        if spec.config.fusion == "early" and len(images) > 1:
            images = [fn.cat(*images, axis=0)]
        pipeline.set_outputs(*images)
    return pipeline


def _input(name: str, dtype: str, ndim: int, layout: str | None = None) -> Any:
    """An input that reads our memory without a copy."""
    from nvidia.dali import fn, types

    return fn.external_source(
        name=name, no_copy=True, dtype=getattr(types, dtype), ndim=ndim, layout=layout
    )


def _survey_image(spec: AugmentSpec, k: int, geometry: Geometry, *, bank: Any, is_gpu: bool) -> Any:
    """The image of one survey: "CHW"; the steps are those of `reference`, in the same order."""
    from nvidia.dali import fn, types

    config, num_bands, size = spec.config, len(geometry.bands), geometry.output_size
    array = _input(f"image_{k}", _dali_type(spec, k), 4, "FHWC")
    if is_gpu:
        array = array.gpu()
    if spec.dtypes[k] != np.float32:
        array = fn.cast(array, dtype=types.FLOAT)
    image = fn.warp_affine(
        _finite(array),
        matrix=_input(f"matrix_{k}", "FLOAT", 2),
        size=(geometry.sampled_size, geometry.sampled_size),
        interp_type=types.INTERP_LINEAR,
    )
    if geometry.oversampling > 1:
        places = geometry.oversampling
        image = fn.reshape(image, shape=[num_bands, size, places, size, places], layout="")
        image = fn.reductions.mean(image, axes=[2, 4])
        image = fn.reshape(image, shape=[num_bands, size, size, 1], layout="FHWC")
    if is_blurred(geometry, config.psf_blur_arcsec):
        window = blur_window(config.psf_blur_arcsec / blur_scale(geometry))
        blur = _input(f"blur_{k}", "FLOAT", 0)
        image = fn.gaussian_blur(image, sigma=blur, window_size=window)
    image = fn.reshape(image, shape=[num_bands, size, size], layout="CHW")
    if bank is not None:
        place = _input(f"place_{k}", "INT32", 1)
        noise = fn.slice(bank, start=place, shape=[num_bands * size**2], axes=[0])
        noise = fn.reshape(noise, shape=[num_bands, size, size], layout="CHW")
        noise *= _input(f"noise_{k}", "FLOAT", 3)
        image += noise.gpu() if is_gpu else noise
    image = _scaled(image, spec.curves[k], is_gpu=is_gpu)
    if config.band_dropout:
        kept = _input(f"kept_{k}", "FLOAT", 3)
        image *= kept.gpu() if is_gpu else kept
    return image


def _dali_type(spec: AugmentSpec, k: int) -> str:
    """DALI's name of an array's dtype, such as "FLOAT" or "INT16"."""
    dtype = spec.dtypes[k]
    names = {"<f4": "FLOAT", "<f8": "FLOAT64", "<f2": "FLOAT16", "|b1": "BOOL"}
    return names.get(dtype.str) or dtype.name.upper()


def _finite(array: Any) -> Any:
    """A float32 array with 0 for NaN and infinities.

    NaN times 0 is NaN, and DALI cannot select by mask; an integer times 0 is 0.
    """
    from nvidia.dali import fn, types

    bits = fn.reinterpret(array, dtype=types.INT32)
    is_finite = (bits & _EXPONENT_BITS) != _EXPONENT_BITS
    return fn.reinterpret(bits * is_finite, dtype=types.FLOAT, layout="FHWC")


def _scaled(image: Any, curve: Curve, *, is_gpu: bool) -> Any:
    """A curve; its factors are numbers where all bands share them, which DALI fuses better."""
    import nvidia.dali.math as dali_math

    image = image * _factor(curve.inner, is_gpu=is_gpu)
    if curve.is_asinh:
        image = dali_math.asinh(image)
    if any(factor != 1 for factor in curve.outer):
        image = image * _factor(curve.outer, is_gpu=is_gpu)
    if curve.low > -math.inf:
        image = dali_math.max(image, curve.low)
    if curve.high < math.inf:
        image = dali_math.min(image, curve.high)
    return image


def _factor(values: tuple[float, ...], *, is_gpu: bool) -> Any:
    from nvidia.dali import types

    if len(set(values)) == 1:
        return values[0]
    return types.Constant(column(values), device="gpu" if is_gpu else "cpu")
