"""Who lends pixels to whom, and which part of the images changes hands.

Partners stay within a group of samples that lie on the device together, so that the data are read
once. Groups are cut from the loader's uniform order at places that no number of ranks moves. Axes:
N samples of a group, K permutations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msdata.augment import AugmentConfig
from msdata.augment.geometry import make_geometries
from msdata.errors import UsageError
from msdata.schema import Schema
from mstrain.checks import check_choice
from mstrain.evaluation.inference import DEFAULT_BATCH
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.models.prior import NATURAL

WITHIN = ("none", "magnitude", "redshift")
LEVELS = ("input", "features")
MASKS = ("none", "center", "surroundings")
# The disc of mask "center", as a share of an image's side.
CENTER_RADIUS = 0.25
EBV = "E(B-V)"
_EARLY_NAME = "image"


@dataclass(frozen=True, kw_only=True)
class PerceptionConfig:
    """What is exchanged, and how.

    Attributes:
        split: name of the split.
        checkpoint: "best", "last", or "all": scores against the step as well.
        prior: "natural", "as-trained", or a CSV file, see `mstrain.models.prior.target_prior`.
        has_any_pixels: take pixels of another kind than the training's.
        num_permutations: partners of each sample.
        within: "none", or "magnitude" or "redshift", whose neighbors exchange.
        level: "input": pixels; "features": what late fusion's encoders give.
        mask: "none", or "center" or "surroundings": the part of the images that is exchanged.
        magnitude_column: column of the index; None takes the r magnitude.
        redshift_edges: edges of the redshift bins; empty chooses round numbers.
        group_size: samples that exchange among each other, and lie on the device together.
        seed: seed of the order that groups are cut from.
        bootstrap: how intervals are made.
        has_report: also draw the section of the report.
        is_quiet: show no progress.
    """

    split: str = "test"
    checkpoint: str = "best"
    prior: str = NATURAL
    has_any_pixels: bool = False
    num_permutations: int = 4
    within: str = "none"
    level: str = "input"
    mask: str = "none"
    magnitude_column: str | None = None
    redshift_edges: tuple[float, ...] = ()
    group_size: int = DEFAULT_BATCH
    seed: int = 0
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    has_report: bool = True
    is_quiet: bool = False

    def __post_init__(self) -> None:
        check_choice("--checkpoint", self.checkpoint, ("best", "last", "all"))
        check_choice("--within", self.within, WITHIN)
        check_choice("--level", self.level, LEVELS)
        check_choice("--mask", self.mask, MASKS)
        if self.num_permutations < 1:
            raise UsageError(f"--permutations must be at least 1, got {self.num_permutations}")
        if self.group_size < 2:
            raise UsageError(f"--batch-size must be at least 2, got {self.group_size}")
        if self.group_size <= 2 * self.num_permutations:
            raise UsageError(
                f"--batch-size must be more than twice --permutations ({self.num_permutations}), "
                f"got {self.group_size}: samples exchange within a batch"
            )
        if self.level == "features" and self.mask != "none":
            raise UsageError("--mask needs --level input: pooled features have no center")
        edges = self.redshift_edges
        if edges and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
            raise UsageError("--redshift-edges must ascend, at least two of them")


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What can be exchanged by itself.

    Attributes:
        name: "unwise.W1", "unwise", "E(B-V)", or several joined by "+".
        kind: "band", "survey", "ebv" or "coalition".
        channels: channels of each image that belong to it, by the image's name.
        has_ebv: whether E(B-V) belongs to it.
    """

    name: str
    kind: str
    channels: dict[str, tuple[int, ...]]
    has_ebv: bool = False


def find_modalities(
    schema: Schema, augment: AugmentConfig, *, has_ebv: bool
) -> tuple[list[Modality], list[Modality]]:
    """The bands of a network's images, and the players of its Shapley values.

    Args:
        schema: schema of the training.
        augment: which arrays become which images.
        has_ebv: the network takes E(B-V).

    Returns:
        Bands, in the order of the channels; surveys, and E(B-V) behind them.
    """
    bands, players, first = [], [], 0
    for survey in make_geometries(schema, augment):
        is_early = augment.fusion == "early"
        image, start = (_EARLY_NAME, first) if is_early else (survey.name, 0)
        numbers = tuple(range(start, start + len(survey.bands)))
        for label, number in zip(survey.bands, numbers, strict=True):
            name = f"{survey.name}.{label}"
            bands.append(Modality(name=name, kind="band", channels={image: (number,)}))
        players.append(Modality(name=survey.name, kind="survey", channels={image: numbers}))
        first += len(numbers)
    if has_ebv:
        players.append(Modality(name=EBV, kind="ebv", channels={}, has_ebv=True))
    return bands, players


def coalitions_of(players: list[Modality]) -> list[Modality]:
    """Every set of players that is not empty, the single ones first."""
    sets = chain.from_iterable(combinations(players, n) for n in range(1, len(players) + 1))
    return [members[0] if len(members) == 1 else _joined(members) for members in sets]


def coalition_name(names: tuple[str, ...]) -> str:
    """The name of the modality of several players."""
    return "+".join(names)


def _joined(members: tuple[Modality, ...]) -> Modality:
    channels: dict[str, tuple[int, ...]] = {}
    for member in members:
        for image, numbers in member.channels.items():
            channels[image] = (*channels.get(image, ()), *numbers)
    return Modality(
        name=coalition_name(tuple(m.name for m in members)),
        kind="coalition",
        channels=channels,
        has_ebv=any(m.has_ebv for m in members),
    )


def num_groups(num_samples: int, group_size: int) -> int:
    """Groups of `group_size` samples; a remainder below one half joins the last group."""
    return max(1, (num_samples + (group_size + 1) // 2) // group_size)


def find_partners(
    num_samples: int, num_permutations: int, values_N: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """From whom each sample of a group takes what is exchanged: never from itself.

    Args:
        num_samples: samples of the group, which lie in a uniformly drawn order.
        num_permutations: K.
        values_N: float64 (N,): exchange among K + 1 or a few more neighbors by these values; NaN
            counts as the largest. None exchanges among all.

    Returns:
        int64 (K, N); no sample meets a partner twice.

    Raises:
        UsageError: there are fewer than K + 1 samples.

    Source: Strobl et al. 2008, BMC Bioinformatics 9, 307, for exchange among neighbors.
    """
    if num_samples <= num_permutations:
        raise UsageError(
            f"--permutations must be less than the {num_samples} samples that are exchanged among, "
            f"got {num_permutations}"
        )
    if values_N is None:
        shifts = 1 + np.arange(num_permutations) * (num_samples - 1) // num_permutations
        return (np.arange(num_samples) + shifts[:, None]) % num_samples
    order_N = np.argsort(values_N, kind="stable")
    partner_KN = np.empty((num_permutations, num_samples), np.int64)
    for near in np.array_split(order_N, max(1, num_samples // (num_permutations + 1))):
        for k in range(num_permutations):
            partner_KN[k, near] = np.roll(near, -1 - k)
    return partner_KN


def make_mask(kind: str, height: int, width: int, device: torch.device) -> Tensor | None:
    """Pixels that are exchanged, bool (H, W); None for all.

    Args:
        kind: one of `MASKS`: "center" is a disc of radius `CENTER_RADIUS` sides.
        height: H.
        width: W.
        device: where the images lie.
    """
    if kind == "none":
        return None
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    radius = CENTER_RADIUS * min(height, width)
    is_center = y_H[:, None] ** 2 + x_W**2 <= radius**2
    return is_center if kind == "center" else ~is_center


def exchange(
    image_NCHW: Tensor, channels: tuple[int, ...], partner_N: Tensor, mask_HW: Tensor | None
) -> Tensor:
    """Images with some channels taken from partners.

    Args:
        image_NCHW: (N, C, H, W); it is not changed.
        channels: which channels.
        partner_N: int64 (N,), the row that each takes from.
        mask_HW: bool (H, W), pixels that are exchanged; None for all.
    """
    changed = image_NCHW.clone()
    for channel in channels:
        own_NHW = image_NCHW[:, channel]
        taken_NHW = own_NHW[partner_N]
        if mask_HW is not None:
            taken_NHW = torch.where(mask_HW, taken_NHW, own_NHW)
        changed[:, channel] = taken_NHW
    return changed
