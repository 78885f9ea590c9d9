"""What a training is made of: frozen values, one section per concern.

Nothing here needs torch, so a wrong setting is refused before seconds go into imports. A run's
resolved configuration is written beside it as JSON, and `from_dict` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from msdata.augment import AugmentConfig
from msdata.cache.config import WARMUPS, CacheConfig
from msdata.core.checked_json import JsonValue
from msdata.errors import DataError, UsageError
from msdata.plan.order import (
    DEFAULT_BUFFER_SAMPLES,
    DEFAULT_POLICY,
    POLICIES,
    check_weighted_policy,
)
from mstrain.checks import check_choice, check_positive, check_range, check_share
from mstrain.network_config import ModelConfig

OPTIMIZERS = ("nadam", "adamw")
WEIGHTINGS = ("none", "inverse_count")
WEIGHT_PLACES = ("loss", "sampler")
PRECISIONS = ("float32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
_MAX_SEED = 2**63 - 1
BACKENDS = ("auto", "reference", "dali", "torch")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the loader is asked for.

    Attributes:
        fraction: share of split "train" to learn from, the first of an order drawn by the run's
            seed: a smaller share is a part of a larger one.
        label_noise: share of the training labels that are exchanged with one another's, drawn by
            the seed: a harm of known size, for a study that must show that it sees harm.
        policy: the loader's policy, see `msdata.Loader`.
        buffer_samples: samples in the shuffle buffer of policy "block".
        cache_gib: `memory_gib` of `msdata.CacheConfig`, which says what this and the next five
            mean; 0 has no cache in memory, None is "auto".
        cache_ssd_dir: its `ssd_dir`.
        cache_ssd_gib: its `ssd_gib`.
        cache_peers_dir: its `peers_dir`.
        cache_job: its `job`.
        cache_warmup: its `warmup`.
        cache_val: keep split "val" in a cache of its own, of the same size at most.
        backend: the augmenter's: "reference" (CPU), "dali", "torch", or "auto", which is DALI if
            the network is on a GPU. `compute.compile` compiles "torch", too.
        threads: threads that fill batches; None lets the loader choose.
        prefetch: batches that the loader fills ahead.
        fold: part of split "train" that is not trained on, such as "0/5" to "4/5", by a hash of the
            sample's id: five such runs judge each object without having seen it.
        without: file with a column `sample_id`, whose samples are not trained on, see `--without`.
    """

    fraction: float = 1.0
    label_noise: float = 0.0
    policy: str = DEFAULT_POLICY
    buffer_samples: int = DEFAULT_BUFFER_SAMPLES
    cache_gib: float | None = 0.0
    cache_ssd_dir: str | None = None
    cache_ssd_gib: float = 0.0
    cache_peers_dir: str | None = None
    cache_job: str | None = None
    cache_warmup: str = WARMUPS[0]
    cache_val: bool = False
    backend: str = "auto"
    threads: int | None = None
    prefetch: int = 1
    fold: str | None = None
    without: str | None = None

    def __post_init__(self) -> None:
        if self.fold is not None:
            parse_fold(self.fold)
        check_choice("data.policy", self.policy, POLICIES)
        check_choice("data.backend", self.backend, BACKENDS)
        check_choice("data.cache_warmup", self.cache_warmup, WARMUPS)
        check_range("data.prefetch", self.prefetch, 1)
        check_share("data.label_noise", self.label_noise)
        check_positive("data.fraction", self.fraction, most=1)
        self.cache()

    def cache(self) -> CacheConfig | None:
        """The loader's cache as the settings ask for it; None where they ask for none.

        Raises:
            UsageError: the settings of the cache do not go together.
        """
        if self.cache_gib == 0 and not self.cache_ssd_gib:
            return None
        return CacheConfig(
            memory_gib=self.cache_gib,
            ssd_dir=None if self.cache_ssd_dir is None else Path(self.cache_ssd_dir),
            ssd_gib=self.cache_ssd_gib,
            peers_dir=None if self.cache_peers_dir is None else Path(self.cache_peers_dir),
            job=self.cache_job,
            warmup=self.cache_warmup,
        )

    def backend_on(self, device: str) -> str:
        """What makes the images of a network on "cpu" or "cuda"."""
        if self.backend != "auto":
            return self.backend
        return "dali" if device == "cuda" else "reference"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy over the bins.

    Attributes:
        label_smoothing: share of each label that is spread evenly over all bins.
        label_width: standard deviation, in units of the target, of the Gaussian that a label is
            spread with; 0 puts it into its bin alone. Neighboring bins so learn from each other,
            which pays where samples per bin are few.
        weighting: "none", or "inverse_count": weight 1/count of the sample's label among
            `weight_bins` bins, with mean 1 over the split.
        weights_in: "loss": every sample comes once per epoch and counts by its weight; "sampler":
            as many samples are drawn with replacement, in proportion to their weights, and count
            alike. docs/design/training.md says what that costs.
        weight_bins: even bins of the target for it; each class has its own.
    """

    label_smoothing: float = 0.0
    label_width: float = 0.0
    weighting: str = "none"
    weights_in: str = "loss"
    weight_bins: int = 50

    def __post_init__(self) -> None:
        check_choice("loss.weighting", self.weighting, WEIGHTINGS)
        check_choice("loss.weights_in", self.weights_in, WEIGHT_PLACES)
        if self.weights_in == "sampler" and self.weighting == "none":
            raise UsageError(
                "loss.weights_in=sampler has no weights to draw samples by; give "
                "loss.weighting=inverse_count, or leave it at loss.weights_in=loss"
            )
        check_share("loss.label_smoothing", self.label_smoothing)
        check_range("loss.label_width", self.label_width, 0)
        check_range("loss.weight_bins", self.weight_bins, 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule.

    Attributes:
        name: "nadam" or "adamw".
        learning_rate: at the end of the warm-up.
        weight_decay: decoupled; biases and norms have none.
        beta1: decay of the mean gradient.
        beta2: decay of the mean square.
        eps: beside the root of the mean square.
        warmup: share of all steps over which the rate rises from 0.
        final_rate: share of the rate that is left at the end of the cosine.
        clip_norm: greatest norm of the gradient; 0 never clips.
        ema_decay: decay of the averaged weights, which are validated and kept; 0 averages nothing.
        freeze_epochs: first epochs in which only the head learns; needs `--init`.
        layer_decay: factor of the rate per stage between head and stem; 1 has one rate for all.
    """

    name: str = "nadam"
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: float = 0.05
    final_rate: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    freeze_epochs: int = 0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, OPTIMIZERS)
        check_positive("optim.learning_rate", self.learning_rate)
        check_positive("optim.eps", self.eps)
        for name in ("beta1", "beta2", "warmup", "ema_decay"):
            check_share(f"optim.{name}", getattr(self, name))
        for name in ("weight_decay", "clip_norm", "final_rate", "freeze_epochs"):
            check_range(f"optim.{name}", getattr(self, name), 0)
        check_positive("optim.layer_decay", self.layer_decay, most=1)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the arithmetic is done.

    Attributes:
        device: "auto" is the GPU of this rank where there is one.
        precision: precision of the forward pass: "float32", or autocast to "bf16" or "fp16"; the
            head is in float32. On a GPU convolutions in "float32" are in TF32, as torch has them.
        channels_last: memory layout of images and kernels; what cuDNN and oneDNN like best.
        compile: through `torch.compile`; minutes at the start, worth it on GPUs in long runs.
        accumulate: parts that a rank's share of a batch is cut into, one after the other, where
            memory is short; batch statistics are then those of a part.
        threads: torch's CPU threads per rank; None divides the cores among a node's ranks, and
            takes at most 4 where the network is on a GPU and OMP_NUM_THREADS anywhere.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    accumulate: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        check_choice("compute.device", self.device, DEVICES)
        check_choice("compute.precision", self.precision, PRECISIONS)
        check_range("compute.accumulate", self.accumulate, 1)
        check_range("compute.threads", self.threads, 1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written down.

    Attributes:
        every_steps: steps between two lines of progress.
        tensorboard: also write `RUN/tensorboard`.
    """

    every_steps: int = 50
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_range("log.every_steps", self.every_steps, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept.

    Attributes:
        every_steps: steps between two checkpoints within an epoch; None has them only at its end.
        keep: the newest so many stay; the best is kept besides.
    """

    every_steps: int | None = None
    keep: int = 3

    def __post_init__(self) -> None:
        check_range("checkpoint.keep", self.keep, 1)
        check_range("checkpoint.every_steps", self.every_steps, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training.

    Attributes:
        recipe: the name of the recipe it came from.
        seed: seed of initial weights, orders and augmentation.
        epochs: passes over split "train"; 0 keeps the network of `--init` as it is.
        batch_size: samples per step over all ranks together, so that a run may change its number
            of ranks and stay the same run; `msdata.Loader(batch_size=...)` counts one rank's.
        batch_per_gpu: samples per step of each rank, one per GPU; None leaves `batch_size`. The run
            then has the product as its `batch_size`, and the learning rate and `ema_decay` of the
            recipe's are scaled, see `mstrain.recipes.for_ranks`.
        data: settings of the loader.
        augment: settings of the augmentation.
        model: settings of the network.
        loss: settings of the loss.
        optim: settings of the optimizer.
        compute: settings of the arithmetic.
        log: settings of the logs.
        checkpoint: settings of the checkpoints.
    """

    recipe: str = ""
    seed: int = 0
    epochs: int = 30
    batch_size: int = 256
    batch_per_gpu: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.loss.weights_in == "sampler":
            check_weighted_policy(self.data.policy)
        check_range("seed", self.seed, 0)
        if self.seed > _MAX_SEED:
            raise UsageError(f"seed must be at most {_MAX_SEED}, got {self.seed}")
        check_range("epochs", self.epochs, 0)
        if self.optim.freeze_epochs > self.epochs:
            raise UsageError(
                f"optim.freeze_epochs must be <= epochs={self.epochs}, got "
                f"{self.optim.freeze_epochs}"
            )
        check_range("batch_size", self.batch_size, 1)
        check_range("batch_per_gpu", self.batch_per_gpu, 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, fit for JSON; `from_dict` is its inverse."""
        return {**asdict(self), "augment": self.augment.as_dict()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> TrainConfig:
        """The configuration that `as_dict` gave.

        Raises:
            UsageError: it holds a setting that this version does not know.
        """
        cure = "use the version that wrote it, or start a new run"
        try:
            return JsonValue(saved, "the configuration", cure).read_as(cls)
        except DataError as error:
            raise UsageError(f"it is of another version of mstrain: {error}") from error


def parse_fold(fold: str) -> tuple[int, int]:
    """Number and count of a fold such as "0/5".

    Raises:
        UsageError: it is not one.
    """
    part, slash, count = fold.partition("/")
    if not slash or not (part.isdecimal() and count.isdecimal()) or int(count) < 2:
        raise UsageError(f"data.fold must be a part such as 0/5, got {fold!r}; parts count from 0")
    if int(part) >= int(count):
        raise UsageError(
            f"data.fold must be from 0/{int(count)} to {int(count) - 1}/{int(count)}, got {fold}"
        )
    return int(part), int(count)


def batch_per_rank(config: TrainConfig, num_ranks: int) -> int:
    """Samples that a rank takes at once.

    Raises:
        UsageError: the global batch does not divide.
    """
    parts = num_ranks * config.compute.accumulate
    if config.batch_per_gpu is not None:
        config = replace(config, batch_size=config.batch_per_gpu * num_ranks, batch_per_gpu=None)
    if config.batch_size % parts:
        raise UsageError(
            f"batch_size={config.batch_size} does not divide into {num_ranks} rank(s) times "
            f"compute.accumulate={config.compute.accumulate}; choose a multiple of {parts}"
        )
    return config.batch_size // parts
