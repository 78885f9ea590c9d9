"""DALI pipelines that do what `reference` does: the only file that imports DALI.

A pipeline is stateless: the draws are inputs. A band is a frame of one channel ("FHWC"): DALI's
warp accepts many frames, not planes. Building the graph needs no GPU.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.geometry import Geometry
from msdata.augment.scaling import Curve, column
from msdata.augment.spec import AugmentSpec, blur_scale, blur_window, is_blurred
from msdata.errors import MissingPackageError, UsageError

# The bits of a float that are all set in NaN and infinities.
_EXPONENT_BITS = 0x7F800000
# asinh(x) is x to the last bit of a float32 up to here; a power of 2 rounds nothing.
_SHRINK = 2.0**-20
_LARGEST = float(np.finfo(np.float32).max)
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
        self.geometries = spec.geometries_of(is_interpolated=is_interpolated)
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


def as_samples(values_N: NDArray[Any]) -> Any:
    """Numbers of each sample as DALI takes them.

    Args:
        values_N: (N, ...); hold what this returns until the batch is done. Otherwise a thread of
            DALI drops the last reference, for which it waits for Python's lock.
    """
    from nvidia.dali import tensors

    return tensors.TensorListCPU(np.ascontiguousarray(values_N))


class NoiseBank:
    """Normal numbers, held where they are added: on a GPU they are copied there once.

    Args:
        values: float32 (num_values,).
        device_id: number of the GPU; None for the CPU.
    """

    def __init__(self, values: NDArray[np.float32], device_id: int | None) -> None:
        from nvidia.dali import Pipeline, tensors

        # DALI tensors of the CPU refer to this memory.
        self._values = values
        if device_id is None:
            self._tensor = tensors.TensorCPU(values)
            return
        pipeline: Any = Pipeline(1, 1, device_id, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(_input("bank", "FLOAT", 1).gpu())
        pipeline.build()
        pipeline.feed_input("bank", as_samples(values[None]))
        pipeline.schedule_run()
        # An output is not overwritten while it is referred to.
        self._pipeline = pipeline
        (self._copies,) = pipeline.outputs()
        self._tensor = self._copies[0]

    def repeated(self, num_samples: int) -> Any:
        """The bank for all samples of a batch, without a copy."""
        from nvidia.dali import tensors

        kind: Any = type(self._tensor).__name__.replace("Tensor", "TensorList")
        return getattr(tensors, kind).broadcast(self._tensor, num_samples)


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
    from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=1,
    )
    is_gpu = device_id is not None
    with pipeline:
        bank = None
        if spec.config.noise:
            bank = _input("bank", "FLOAT", 1, device="gpu" if is_gpu else "cpu")
        surveys = [
            _survey_image(spec, k, geometry, is_gpu=is_gpu)
            for k, geometry in enumerate(spec.geometries_of(is_interpolated=is_interpolated))
        ]
        images = [
            _finished(spec, k, [surveys[i] for i in members], bank=bank, is_gpu=is_gpu)
            for k, members in enumerate(spec.members)
        ]
        pipeline.set_outputs(*images)
    return pipeline


def _input(name: str, dtype: str, ndim: int, layout: str | None = None, device: str = "cpu") -> Any:
    """An input that reads our memory without a copy."""
    from nvidia.dali import fn, types

    return fn.external_source(
        name=name,
        no_copy=True,
        dtype=getattr(types, dtype),
        ndim=ndim,
        layout=layout,
        device=device,
    )


def _survey_image(spec: AugmentSpec, k: int, geometry: Geometry, *, is_gpu: bool) -> Any:
    """The resampled image of one survey: "CHW"; steps are in the order of `reference`."""
    from nvidia.dali import fn, types

    config, num_bands, size = spec.config, len(geometry.bands), geometry.output_size
    array = _input(f"image_{k}", _dali_type(spec, k), 4, "FHWC")
    if is_gpu:
        array = array.gpu()
    if spec.dtypes[k] != np.float32:
        array = fn.cast(array, dtype=types.FLOAT)
    image = fn.warp_affine(
        _finite(array) if spec.dtypes[k].kind == "f" else array,
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
    return fn.reshape(image, shape=[num_bands, size, size], layout="CHW")


def _finished(spec: AugmentSpec, k: int, surveys: list[Any], *, bank: Any, is_gpu: bool) -> Any:
    """One image of the batch: noise, scaling and dropout of all its surveys at once.

    DALI runs an operator of arithmetic per kernel, so it is joined rather than repeated per survey.
    """
    from nvidia.dali import fn

    members, shape = spec.members[k], list(spec.shapes.values())[k]
    image = fn.cat(*surveys, axis=0) if len(surveys) > 1 else surveys[0]
    if bank is not None:
        place = _input(f"place_{k}", "INT32", 1)
        noise = fn.slice(bank, start=place, shape=[math.prod(shape)], axes=[0])
        noise = fn.reshape(noise, shape=shape, layout="CHW")
        sigma = _input(f"noise_{k}", "FLOAT", 3)
        image += noise * (sigma.gpu() if is_gpu else sigma)
    image = _scaled(image, [spec.curves[i] for i in members], is_gpu=is_gpu)
    if spec.config.band_dropout:
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


def _scaled(image: Any, curves: list[Curve], *, is_gpu: bool) -> Any:
    """The curves of an image's surveys as one; see `_joined`."""
    import nvidia.dali.math as dali_math

    is_asinh, inner, outer, low, high = _joined(curves)
    if any(factor != 1 for factor in inner):
        image = image * _factor(inner, is_gpu=is_gpu)
    if is_asinh:
        image = dali_math.asinh(image)
    if any(factor != 1 for factor in outer):
        image = image * _factor(outer, is_gpu=is_gpu)
    if max(high) == math.inf == min(high):
        is_bounded = max(low) > -math.inf
        return dali_math.max(image, _factor(low, is_gpu=is_gpu)) if is_bounded else image
    low, high = (np.clip(bound, -_LARGEST, _LARGEST).tolist() for bound in (low, high))
    return dali_math.clamp(
        image, _factor(tuple(low), is_gpu=is_gpu), _factor(tuple(high), is_gpu=is_gpu)
    )


def _joined(curves: list[Curve]) -> tuple[Any, ...]:
    """One curve for the bands of all: whether it is asinh; inner, outer, low and high per band.

    Beside asinh a curve that is linear up to its bounds is asinh of so small numbers that no float
    tells them apart.
    """
    is_asinh = any(curve.is_asinh for curve in curves)
    bands: list[tuple[float, ...]] = []
    for curve in curves:
        is_shrunk = is_asinh and not curve.is_asinh
        assert not is_shrunk or max(abs(curve.low), abs(curve.high)) <= 1, "asinh would bend it"
        shrink = _SHRINK if is_shrunk else 1.0
        bands += [
            (inner * shrink, outer / shrink, curve.low, curve.high)
            for inner, outer in zip(curve.inner, curve.outer, strict=True)
        ]
    return is_asinh, *zip(*bands, strict=True)


def _factor(values: tuple[float, ...], *, is_gpu: bool) -> Any:
    """A number where all bands share it, else a constant per band."""
    from nvidia.dali import types

    if len(set(values)) == 1:
        return values[0]
    return types.Constant(column(values), device="gpu" if is_gpu else "cpu")
