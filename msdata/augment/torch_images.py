"""Tensors of the `torch` backend: the only file of the room that imports torch.

`ImageFunction` does what `reference` does, in tensor operations; a queue is where they run. On a
GPU nothing here waits for it but `handed_over`.

Legend: N samples, B bands of a survey, S pixels along a side of an image, P numbers per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from msdata.augment.geometry import Geometry
from msdata.augment.pinning import PinnedBuffers
from msdata.augment.scaling import Curve
from msdata.augment.spec import EARLY_NAME, AugmentSpec, blur_scale, blur_window, noise_bank
from msdata.errors import MissingPackageError, UsageError

try:
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import Tensor
except ImportError as error:
    raise MissingPackageError(
        "the torch backend needs torch: run pip install 'msdata[train]'"
    ) from error

# The lowest codes of each type stand for NaN, -0 and infinities.
_NUM_SPECIAL_CODES = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def decode_finite(codes_NBHW: Tensor, steps_NB: Tensor) -> Tensor:
    """The pixels of quantized records, with 0 for those that are not finite.

    Args:
        codes_NBHW: int16 or int32; code c stands for (c - sign(c) / 2) * step, and the lowest eight
            codes of the type for NaN, -0 and infinities.
        steps_NB: float32, (N, 1) where bands share a step; a plane of step 0 holds the bits of
            float32 numbers, in int32.

    Returns:
        float32 (N, B, height, width).
    """
    step = steps_NB[:, :, None, None]
    # The order of the CPU's decoder, for the same bits.
    odd = codes_NBHW.to(torch.int32) * 2 - torch.sign(codes_NBHW)
    pixels = odd.to(torch.float32).mul_(0.5 * step)
    is_special = codes_NBHW < torch.iinfo(codes_NBHW.dtype).min + _NUM_SPECIAL_CODES
    pixels = pixels.masked_fill_(is_special, 0.0)
    if codes_NBHW.dtype == torch.int32:
        plain = codes_NBHW.view(torch.float32).nan_to_num(0.0, 0.0, 0.0)
        pixels = torch.where(step == 0, plain, pixels)
    return pixels


class ImageFunction:
    """From arrays on the device to images on the device: tensor operations and nothing else.

    Args:
        spec: the augmentation.
        device: where arrays and images are.
        dtype: "float32" or "bfloat16", of the images.
        channels_last: whether images lie in memory pixel by pixel, not channel by channel.
    """

    def __init__(
        self, spec: AugmentSpec, device: torch.device, *, dtype: str, channels_last: bool
    ) -> None:
        self._spec, self._device, self._dtype = spec, device, DTYPES[dtype]
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._bank = None
        if spec.config.noise:
            self._bank = torch.from_numpy(noise_bank(spec.seed)).to(device)
        self._channels = spec.channel_slices
        geometries = {*spec.geometries, *spec.geometries_of(is_interpolated=False)}
        self._from_middle = {
            size: torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
            for size in {g.sampled_size for g in geometries}
        }
        # Made once: on a GPU a number of the host that becomes a tensor is waited for.
        self._factors = [
            (self._column(curve.inner), self._column(curve.outer)) for curve in spec.curves
        ]

    def _column(self, values: tuple[float, ...]) -> float | Tensor:
        """A factor per band, shaped to multiply an image; a number where all bands share it."""
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None, None]

    def __call__(
        self,
        arrays: Sequence[Tensor],
        block_NP: Tensor,
        shapes: Sequence[tuple[str, tuple[int, ...]]],
        *,
        is_interpolated: bool,
    ) -> dict[str, Tensor]:
        """Augments a batch.

        Args:
            arrays: (N, B, height, width) per survey: pixels, or codes where there are steps.
            block_NP: float32, what `parameters` gives, side by side.
            shapes: name and shape per sample of each of them.
            is_interpolated: whether pixels lie between those of the arrays.

        Returns:
            (N, channels, S, S) by name.
        """
        parts = torch.split(block_NP, [math.prod(shape) for _, shape in shapes], dim=1)
        given = {
            name: part.reshape(-1, *shape)
            for part, (name, shape) in zip(parts, shapes, strict=True)
        }
        geometries = self._spec.geometries_of(is_interpolated=is_interpolated)
        noise = self._noise(given)
        images: dict[str, Tensor] = {}
        whole = None
        if self._spec.config.fusion == "early":
            shape = (len(block_NP), *self._spec.shapes[EARLY_NAME])
            whole = self.empty(shape)
            images = {EARLY_NAME: whole}
        for k, (geometry, channels) in enumerate(zip(geometries, self._channels, strict=True)):
            image = self._sampled(k, geometry, arrays[k], given, is_interpolated=is_interpolated)
            if f"blur_{k}" in given:
                image = self._blurred(geometry, image, given[f"blur_{k}"])
            if noise:
                sigmas = given["noise"][:, channels, None, None]
                image.addcmul_(noise[k].view_as(image), sigmas)
            self._scale(self._spec.curves[k], self._factors[k], image)
            if "kept" in given:
                image.mul_(given["kept"][:, channels, None, None])
            if whole is None:
                images[geometry.name] = self.empty(image.shape).copy_(image)
            else:
                whole[:, channels] = image
        return images

    def compiled(self) -> Any:
        """The same function through `torch.compile`, which joins operations into few kernels."""
        compiled = torch.compile(self.__call__, fullgraph=True)

        def run(arrays: Sequence[Tensor], block_NP: Tensor, *rest: Any, **options: Any) -> Any:
            if len(block_NP) == 1:
                # torch's compiler takes a 1 for a shape of its own.
                return self(arrays, block_NP, *rest, **options)
            for tensor in (*arrays, block_NP):
                # The last batch of an epoch is shorter, and would be compiled for again.
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled(arrays, block_NP, *rest, **options)

        return run

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Memory for images of a shape."""
        return torch.empty(
            shape, dtype=self._dtype, device=self._device, memory_format=self._layout
        )

    def _sampled(
        self,
        k: int,
        geometry: Geometry,
        array_NBHW: Tensor,
        given: dict[str, Tensor],
        *,
        is_interpolated: bool,
    ) -> Tensor:
        """The one interpolation."""
        if f"step_{k}" in given:
            pixels = decode_finite(array_NBHW, given[f"step_{k}"])
        else:
            pixels = array_NBHW.to(torch.float32)
            if array_NBHW.is_floating_point():
                pixels = pixels.nan_to_num(0.0, 0.0, 0.0)
        places, from_middle = geometry.oversampling, self._from_middle[geometry.sampled_size]
        # Not affine_grid: it multiplies matrices, on GPUs by choice with 10 bits.
        map_N1123 = given[f"map_{k}"][:, None, None]
        row_N1S2 = torch.addcmul(map_N1123[..., 2], map_N1123[..., 0], from_middle[:, None])
        grid_NSS2 = torch.addcmul(row_N1S2, map_N1123[..., 1], from_middle[:, None, None])
        # Where whole pixels are moved, the nearest is that pixel.
        is_moved = geometry.is_native and not is_interpolated
        image = F.grid_sample(
            pixels,
            grid_NSS2,
            mode="nearest" if is_moved else "bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return F.avg_pool2d(image, places) if places > 1 else image

    def _blurred(self, geometry: Geometry, image_NBSS: Tensor, sigma_N: Tensor) -> Tensor:
        """A Gaussian per sample, as a sum of shifted images: rows, then columns."""
        size = geometry.output_size
        window = blur_window(self._spec.config.psf_blur_arcsec / blur_scale(geometry))
        reach = window // 2
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=self._device)
        kernel_NW = torch.exp(-0.5 * (offsets / sigma_N[:, None]) ** 2)
        kernel_NW = kernel_NW / kernel_NW.sum(dim=1, keepdim=True)
        # Mirrored at the middle of the outermost pixels, as often as it takes.
        places = torch.arange(-reach, size + reach, device=self._device) % max(2 * size - 2, 1)
        places = torch.minimum(places, (2 * size - 2 - places).abs())
        for axis in (2, 3):
            wide = image_NBSS.index_select(axis, places)
            image_NBSS = torch.zeros_like(image_NBSS)
            for i in range(window):
                weight = kernel_NW[:, i, None, None, None]
                image_NBSS.addcmul_(wide.narrow(axis, i, size), weight)
        return image_NBSS

    def _noise(self, given: dict[str, Tensor]) -> Sequence[Tensor]:
        """Normal numbers of each survey, from each sample's place in the bank on."""
        if "noise" not in given or self._bank is None:
            return ()
        sizes = self._spec.noise_sizes
        rows = self._bank.unfold(0, sum(sizes), 1)
        return torch.split(rows[given["noise_start"].to(torch.int64)], sizes, dim=1)

    def _scale(
        self, curve: Curve, factors: tuple[float | Tensor, float | Tensor], image: Tensor
    ) -> None:
        """Scales in place: on a CPU new memory costs as much as the arithmetic."""
        inner, outer = factors
        if isinstance(inner, Tensor) or inner != 1:
            image.mul_(inner)
        if curve.is_asinh:
            image.asinh_()
        if isinstance(outer, Tensor) or outer != 1:
            image.mul_(outer)
        if curve.low > -math.inf or curve.high < math.inf:
            image.clamp_(
                curve.low if curve.low > -math.inf else None,
                curve.high if curve.high < math.inf else None,
            )


class HostQueue:
    """The CPU: what is submitted is done."""

    device = torch.device("cpu")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nothing to make current."""
        yield

    def sent(self, array: NDArray[Any]) -> Tensor:
        """The array's own memory."""
        return torch.from_numpy(array)

    def mark(self) -> Any:
        """No moment to wait for."""
        return None

    def handed_over(self, images: dict[str, Tensor], moment: Any) -> None:
        """Images are there already."""

    def close(self) -> None:
        """Nothing to release."""


class GpuQueue:
    """A GPU's stream of our own, so that batches do not queue up behind the network's kernels.

    Args:
        device_id: number of the GPU.

    Raises:
        UsageError: torch does not see that GPU.
    """

    def __init__(self, device_id: int) -> None:
        num_gpus = torch.cuda.device_count()
        if not 0 <= device_id < num_gpus:
            raise UsageError(
                f"torch cannot use GPU {device_id} (it sees {num_gpus}); look at nvidia-smi, or "
                "use device_id=None for the CPU"
            )
        self.device = torch.device("cuda", device_id)
        # Of high priority: small kernels that the next step waits for.
        self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        self._pinned = PinnedBuffers(device_id)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Our stream is the calling thread's within the context, and its GPU."""
        with torch.cuda.stream(self._stream):
            yield

    def sent(self, array: NDArray[Any]) -> Tensor:
        """A copy that is queued; the array must stay unchanged until the batch is done."""
        tensor = torch.from_numpy(array)
        if not self._pinned.pin(array):
            # torch's allocator holds the page-locked copy until it has been read.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def mark(self) -> Any:
        """The moment at which all that is queued so far is done."""
        # The thread sleeps until then instead of taking a core.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def handed_over(self, images: dict[str, Tensor], moment: Any) -> None:
        """Waits for images, and lends them to the stream that is the calling thread's.

        Their memory is ours: without a note it would be used again while the network's kernels,
        which are queued there, have yet to read it.
        """
        moment.synchronize()
        for image in images.values():
            image.record_stream(torch.cuda.current_stream(self.device))

    def close(self) -> None:
        """Waits for what is queued, and unlocks what was page-locked."""
        self._stream.synchronize()
        self._pinned.close()


def open_queue(device_id: int | None) -> HostQueue | GpuQueue:
    """Where a backend's operations run: a GPU by its number; None is the CPU."""
    return HostQueue() if device_id is None else GpuQueue(device_id)
