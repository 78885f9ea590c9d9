"""Training on CUDA devices that are not there, by tensors that know shape, dtype and device alone.

    python fake_device.py SHIM.so < CASES.json

SHIM.so is `fake_cuda.cpp`, compiled. Each case is run as one rank of a process group whose other
ranks only seem to be there; answers are a line of JSON each. What fake tensors cannot do is what
a GPU must not be asked for in a step: mix devices (an error), tell a value or a shape that depends
on one (noted as a wait, with the place that asked).
"""

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL).install_fake_cuda()

import numpy as np
import torch
import torch._dynamo  # Optimizers import it: once here instead of in each case's process.
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.library import Library
from torch.nn.parallel import distributed as ddp
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import msdata
from msdata.augment import torch_images
from msdata.topology import Topology
from mstrain.data import batches, transfer
from mstrain.distributed import Ranks, Stopped, StopRequest
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
from mstrain.training import checkpoint, trainer
from mstrain.training import run as training_run
from mstrain.training.train_step import TrainStep

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
KEPT: list[TrainStep] = []
META = Library("aten", "IMPL", "Meta")
SHAPES = {
    "early": {"image": (9, 16, 16)},
    "late": {"galex": (2, 8, 8), "panstarrs": (5, 16, 16), "unwise": (2, 8, 8)},
}


def allow_cuda() -> None:
    """Has torch take the device for granted where it would ask the driver."""
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 8
    cuda.current_device = lambda: 0
    cuda.set_device = lambda device: None
    cuda.get_device_name = lambda device: "fake"
    cuda.is_bf16_supported = lambda *a, **k: True
    cuda.is_current_stream_capturing = lambda: False
    FakeTensorMode.avoid_device_init = property(lambda self: True)
    torch.nn.Module._apply = apply_to_module
    ddp._verify_param_shape_across_processes = lambda *a, **k: None
    ddp._sync_module_states = lambda *a, **k: None
    add_meta_kernels()


def apply_to_module(self: Any, fn: Callable[..., Any], recurse: bool = True) -> Any:
    """`Module.to` by new parameters: those of a fake tensor cannot be swapped in place."""
    for child in self.children():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            self._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def add_meta_kernels() -> None:
    """Shapes of the kernels of synchronized batch norm, which torch does not tell."""

    def channels(x: Any, like: Any = None) -> Any:
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        return x.new_empty(x.shape[1], dtype=wide if like is None else like.dtype)

    def reduced(gradient: Any, x: Any, mean: Any, *_: Any) -> Any:
        return tuple(channels(x, mean) for _ in range(4))

    kernels = {
        "batch_norm_stats": lambda x, eps: (channels(x), channels(x)),
        "batch_norm_gather_stats_with_counts": lambda x, mean, *_: (
            channels(x, mean),
            channels(x, mean),
        ),
        "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
        "batch_norm_backward_reduce": reduced,
        "batch_norm_backward_elemt": lambda gradient, x, *_: torch.empty_like(x),
    }
    for name, kernel in kernels.items():
        META.impl(name, kernel)


def place() -> str:
    """The functions of the project, of torch's optimizers and scaler, that are being run."""
    known = ("/mstrain/", "/torch/optim/", "/torch/amp/")
    frames = [f for f in traceback.extract_stack() if any(part in f.filename for part in known)]
    return " > ".join(f"{Path(f.filename).name}:{f.name}" for f in frames[-2:])


def is_on(value: Any, kind: str) -> bool:
    """Whether it is a tensor on such a device."""
    return isinstance(value, torch.Tensor) and value.device.type == kind


class Watch(TorchDispatchMode):
    """Notes waits for the device, and collectives in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.collectives: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func.namespace == "c10d":
            self.note_collective(func.__name__, args)
        elif func is aten._local_scalar_dense.default and is_on(args[0], "cuda"):
            self.waits.append(f"value at {place()}")
            return answer(args[0])
        elif is_waiting_copy(func, args, options):
            self.waits.append(f"copy at {place()}")
        return func(*args, **options)

    def note_collective(self, name: str, args: Any) -> None:
        """Name, shapes, types and devices."""
        flat = torch.utils._pytree.tree_leaves(args)
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        self.collectives.append(f"{name} {[describe(t) for t in tensors]}")


def describe(tensor: Any) -> str:
    """What all ranks have to agree on."""
    return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device}"


def answer(tensor: Any) -> Any:
    """A value for whoever has waited for it."""
    if tensor.dtype == torch.bool:
        return True
    return 0.5 if tensor.dtype.is_floating_point else 1


def is_waiting_copy(func: Any, args: Any, options: Any) -> bool:
    """Whether a copy between host and device is one that the host waits for."""
    if func is aten._to_copy.default:
        target, is_quick = options.get("device"), options.get("non_blocking", False)
        kinds = {args[0].device.type, torch.device(target or args[0].device).type}
    elif func is aten.copy_.default:
        is_quick = args[2] if len(args) > 2 else options.get("non_blocking", False)
        kinds = {args[0].device.type, args[1].device.type}
    else:
        return False
    return kinds == {"cpu", "cuda"} and not is_quick


def a_batch(train_step: TrainStep, fusion: str, num_samples: int, *, ends_step: bool) -> Any:
    """Samples on the device."""
    images = {
        name: torch.empty(num_samples, *shape, device=DEVICE).to(memory_format=torch.channels_last)
        for name, shape in SHAPES[fusion].items()
    }
    return batches.TensorBatch(
        images=images,
        ebv=torch.empty(num_samples, device=DEVICE),
        redshift=torch.empty(num_samples, dtype=torch.float64, device=DEVICE),
        sample_id=np.array(["a"] * num_samples),
        ends_step=ends_step,
    )


def run_case(case: dict[str, Any], watch: Watch) -> None:
    """A step or two, and a validation batch, on one rank."""
    config = apply_overrides(find_recipe(case["recipe"]), case["settings"])
    world, rank = case["world"], case["rank"]
    ranks = Ranks(topology=Topology(ranks_per_node=world, rank=rank), device=DEVICE)
    fusion = config.augment.fusion
    undo = torch.zeros(config.model.num_bins)
    train_step = TrainStep(
        config, SHAPES[fusion], ranks, torch.ones(50), num_steps=100, log_factor=undo
    )
    devices = {t.device for t in train_step.model.state_dict().values()}
    assert devices == {DEVICE}, devices
    if train_step._joined is not None:
        # DDP's reducer calls its group from C++, past all that looks on.
        def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP looks at annotations
            watch.collectives.append(f"bucket {describe(bucket.buffer())}")
            summed: Any = torch.futures.Future()
            summed.set_result(bucket.buffer())
            return summed

        train_step._joined.register_comm_hook(None, hook)
        # Its own clock is CUDA's.
        train_step._joined.logger = mock.Mock()
    parts = [
        a_batch(train_step, fusion, case["num_samples"], ends_step=number % 2 == 1)
        for number in range(2)
    ]
    with watch:
        # After its first step DDP looks at values.
        for number in range(2 if train_step._joined is None else 1):
            for batch in parts if config.compute.accumulate > 1 else parts[1:]:
                train_step.add(batch)
            sums = train_step.step(number)
        for value in (sums.loss_sum, sums.weight_sum, sums.num_samples, sums.gradient_norm):
            assert value.device == DEVICE
        if case["num_samples"]:
            sums = train_step.validation_sums(parts[1])
            assert sums.device == DEVICE


class Inline:
    """In the thread that looks on, instead of one of its own: `Prefetcher`."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)
        self.wait_s = 0.0

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *of_error: object) -> None:
        self._items.close()

    def __iter__(self) -> "Inline":
        return self

    def __next__(self) -> Any:
        return next(self._items)


class StopAt(StopRequest):
    """Asks to stop when it is polled the so manieth time; 0 never does."""

    def __init__(self, polls: int) -> None:
        super().__init__()
        self._left = polls

    def poll(self, ranks: Ranks) -> bool:
        """Whether that is now."""
        self._left -= 1
        return self._left == 0


def run_training(case: dict[str, Any], watch: Watch) -> None:
    """The whole training, stopped in its second epoch and resumed, from the loader to the files."""
    saved: dict[str, Any] = {}

    def write(path: Path, state: Any) -> None:
        saved[str(path)] = state
        path.write_bytes(b"held in memory")

    prior = training_run.measure_prior

    def real_prior(*args: Any) -> Any:
        with unset_fake_temporarily():
            return prior(*args)

    def kept(*args: Any, **options: Any) -> TrainStep:
        # torch 2.13 crashes when it frees the storage of fake parameters.
        KEPT.append(TrainStep(*args, **options))
        return KEPT[-1]

    # Of the labels, on the host, before the training.
    training_run.measure_prior = real_prior
    training_run.TrainStep = kept
    torch.cuda.Event = mock.Mock()  # type: ignore[misc]
    # What the torch backend of augmentation asks of a GPU beside tensors.
    torch.cuda.Stream = torch.cuda.current_stream = mock.Mock()  # type: ignore[misc,assignment]
    torch.cuda.stream = lambda stream: nullcontext()  # type: ignore[assignment]
    torch.Tensor.record_stream = lambda image, stream: None  # type: ignore[method-assign]
    torch_images.PinnedBuffers = mock.Mock()  # type: ignore[misc]
    transfer._pinned = lambda tensor: tensor
    checkpoint._write = write
    training_run.read_checkpoint = lambda path: saved[str(path)]
    for module in (batches, trainer, training_run):
        module.Prefetcher = Inline
    config = apply_overrides(find_recipe(case["recipe"]), case["settings"])
    out, data = Path(case["out"]), msdata.open(case["data"])
    with pretended_pins(), checkpoint.locked_run(out):
        for polls, step in case["stops"]:
            ranks = Ranks(topology=Topology(), device=DEVICE)
            try:
                with watch:
                    training_run.train_on_ranks(
                        out, config, data, ranks, StopAt(polls), is_quiet=True
                    )
            except Stopped:
                assert polls
            last = saved[str(checkpoint.find_last(out))]
            on_host = {t.device.type for t in torch.utils._pytree.tree_leaves(last["model"])}
            assert on_host == {"cpu"}, on_host
            assert last["progress"]["step"] == step


def pretended_pins() -> Any:
    """Page-locked memory that is ordinary memory."""
    empty = torch.empty_like

    def unlocked(*args: Any, pin_memory: bool = False, **options: Any) -> Any:
        return empty(*args, **options)

    return mock.patch("torch.empty_like", unlocked)


def answer_of(case: dict[str, Any]) -> list[Any]:
    """What went wrong, waits, collectives."""
    watch, fault = Watch(), None
    if case["world"] > 1:
        options = {"rank": case["rank"], "world_size": case["world"], "store": FakeStore()}
        dist.init_process_group("fake", **options)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            (run_training if "data" in case else run_case)(case, watch)
    except Exception:
        fault = traceback.format_exc(limit=-8)
    return [fault, watch.waits, watch.collectives]


def main() -> None:
    """Answers all cases, each in a process of its own: a process has one group."""
    allow_cuda()
    for case in json.load(sys.stdin):
        child = os.fork()
        if not child:
            print(json.dumps(answer_of(case)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps([f"ended with status {status}", [], []]), flush=True)


if __name__ == "__main__":
    main()
