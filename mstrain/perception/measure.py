"""The losses of a network when parts of its input come from other objects, on all ranks.

Per sample and modality, over K partners: mean CRPS, -log p and outlier share, the variance of the
estimate and the mean Jensen-Shannon distance of the densities. Axes: N samples, K permutations, B
bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import msdata
from msdata.core.progress import ProgressLine
from msdata.dataset.dataset import Split
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks
from mstrain.evaluation.inference import batches_of, plain_config, precision_of
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.densities import Densities, Floats, make_densities
from mstrain.evaluation.metrics.estimates import OUTLIER_THRESHOLDS, outlier_name
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.run_info import TrainedRun
from mstrain.models.heads import bin_edges, density
from mstrain.models.prior import TargetPrior
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.target import REDSHIFT_TARGET, Target
from mstrain.perception.exchange import (
    Modality,
    PerceptionConfig,
    coalitions_of,
    exchange,
    find_modalities,
    find_partners,
    make_mask,
    num_groups,
)
from mstrain.training.checkpoint import load_model

LOSSES = ("crps", "log_loss", *(outlier_name(t) for t in OUTLIER_THRESHOLDS))
BASE = "as it is"


def modalities_of(
    run: TrainedRun, config: PerceptionConfig
) -> tuple[list[Modality], list[Modality]]:
    """Bands and players of a run that an exchange can tell apart; none where the level has none."""
    augment = run.config.augment
    has_ebv = bool(run.config.model.reddening) and config.mask == "none"
    bands, players = find_modalities(run.schema, augment, has_ebv=has_ebv)
    if config.level == "input":
        return bands, players
    return ([], []) if augment.fusion == "early" else ([], players)


def measure(
    run: TrainedRun,
    split: Split,
    ranks: Ranks,
    prior: TargetPrior,
    config: PerceptionConfig,
    within: str | None,
) -> dict[str, NDArray[Any]] | None:
    """Losses of every sample of a split; all ranks call it.

    Args:
        run: see `open_run`.
        split: of data that fit the run, see `check_data`.
        ranks: this rank among the others.
        prior: what densities are under.
        config: how parts are exchanged.
        within: column of the index whose neighbors exchange; None exchanges among all.

    Returns:
        On the first rank, (N,) each in the order of the index: "sample_id", "redshift", and
        "LOSS|MODALITY"; None on the others. The same for any number of ranks.
    """
    bands, players = modalities_of(run, config)
    variants = [*bands, *coalitions_of(players)]
    model, _ = load_model(run.path, run.which, ranks.device)
    value_of = None
    if within is not None:
        ids = split.table(["sample_id"]).column(0).to_pylist()
        value_of = dict(zip(ids, split.numbers(within), strict=True))
    is_quiet = config.is_quiet or not ranks.is_first
    progress = ProgressLine("perceive", len(split), is_quiet=is_quiet)
    pieces, done = [], 0
    for batch in group_batches(run, split, ranks, config):
        values = None if value_of is None else np.array([value_of[i] for i in batch.sample_id])
        partner_KN = find_partners(len(batch), config.num_permutations, values)
        pieces.append(measure_batch(model, batch, variants, partner_KN, (run, prior, config.mask)))
        done = min(done + len(batch) * ranks.count, len(split))
        progress.update(done, done * split.sample_nbytes)
    progress.close(len(split), len(split) * split.sample_nbytes)
    given = ranks.gather(pieces)
    return None if given is None else _in_order([p for part in given for p in part], split)


def _in_order(pieces: list[dict[str, NDArray[Any]]], split: Split) -> dict[str, NDArray[Any]]:
    """Columns of all groups, in the order of the index."""
    joined = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    place = {name: n for n, name in enumerate(split.table(["sample_id"]).column(0).to_pylist())}
    order_N = np.argsort([place[name] for name in joined["sample_id"]])
    return {name: values[order_N] for name, values in joined.items()}


def group_batches(
    run: TrainedRun, split: Split, ranks: Ranks, config: PerceptionConfig
) -> Iterator[TensorBatch]:
    """This rank's groups of samples: those of all ranks are the same for any number of ranks.

    All but the last few groups are the ranks' shares of full steps. Every rank reads the rest,
    fewer than `group_size` times the number of ranks, and keeps its own.
    """
    size, count = config.group_size, num_groups(len(split), config.group_size)
    num_steps = (count - 1) // ranks.count
    if num_steps:
        yield from islice(_batches(run, split, ranks, config, 0), num_steps)
    alone = Ranks(topology=msdata.Topology(), device=ranks.device)
    held: list[TensorBatch] = []
    first = num_steps * ranks.count
    for number, batch in enumerate(_batches(run, split, alone, config, first * size), start=first):
        # A small remainder joins the last group.
        group = min(number, count - 1)
        if group % ranks.count != ranks.topology.rank:
            continue
        if group < count - 1:
            yield batch
        else:
            # Later batches overwrite the loader's images.
            held.append(TensorBatch.joined([batch]))
    if held:
        yield TensorBatch.joined(held)


def _batches(
    run: TrainedRun, split: Split, ranks: Ranks, config: PerceptionConfig, position: int
) -> Iterator[TensorBatch]:
    """Batches of a rank from a position of the order on."""
    plain = replace(plain_config(run.config, config.group_size, ranks), seed=config.seed)
    return batches_of(run, split, plain, ranks, position)


@torch.inference_mode()
def measure_batch(
    model: RedshiftNet,
    batch: TensorBatch,
    variants: list[Modality],
    partner_KN: NDArray[np.int64],
    place: tuple[TrainedRun, TargetPrior, str],
) -> dict[str, NDArray[Any]]:
    """Losses of the samples of a group.

    Args:
        model: the network, in evaluation mode.
        batch: the group.
        variants: what is exchanged, one after the other.
        partner_KN: int64 (K, N), from `find_partners`.
        place: the run, the prior of the densities, and the kind of mask.

    Returns:
        See `measure`; (N,) each.
    """
    run, prior, kind = place
    device = batch.redshift.device
    edges = bin_edges(run.config.model).numpy()
    truth_N, target = batch.redshift.cpu().numpy(), Target.of(run.config.model)
    partners = [torch.from_numpy(partner_N).to(device) for partner_N in partner_KN]
    with precision_of(run.config, device):
        features = {name: e(batch.images[name]) for name, e in model.encoders.items()}

        def densities_of(changed: Mapping[str, Tensor], ebv: Tensor | None) -> Densities:
            joined = torch.cat([changed[name] for name in model.encoders], dim=1)
            logits = model.head(joined, ebv)
            found = density(logits, run.config.model, prior.log_factor)
            return make_densities(found.cpu().numpy(), edges)

        base = densities_of(features, batch.ebv)
        found: dict[str, NDArray[Any]] = {
            "sample_id": np.asarray(batch.sample_id, object),
            "redshift": truth_N,
            "z_mean": piecewise.mean(base),
        }
        found |= {f"{loss}|{BASE}": v for loss, v in losses_of(base, truth_N, target).items()}
        # Coalitions with and without E(B-V) exchange the same pixels.
        kept: dict[tuple[str, int], dict[str, Tensor]] = {}
        for variant in variants:
            seen = []
            for k, partner_N in enumerate(partners):
                key = (str(variant.channels), k)
                if key not in kept:
                    kept[key] = _changed(model, batch, features, variant, partner_N, kind)
                changed, ebv = kept[key], batch.ebv
                if variant.has_ebv and ebv is not None:
                    ebv = ebv[partner_N]
                seen.append(densities_of(changed, ebv))
            found |= _columns(variant.name, base, seen, truth_N, target)
    return found


def _changed(
    model: RedshiftNet,
    batch: TensorBatch,
    features: Mapping[str, Tensor],
    variant: Modality,
    partner_N: Tensor,
    kind: str,
) -> dict[str, Tensor]:
    """Features after an exchange; an encoder that sees no change is not run again."""
    changed = dict(features)
    for name, channels in variant.channels.items():
        image = batch.images[name]
        mask = make_mask(kind, image.shape[2], image.shape[3], image.device)
        if mask is None and len(channels) == image.shape[1]:
            # A sample's features depend on its own pixels alone: all exchanged, they are the
            # partner's. So the levels "input" and "features" agree where an image is a survey.
            changed[name] = features[name][partner_N]
        else:
            changed[name] = model.encoders[name](exchange(image, channels, partner_N, mask))
    return changed


def losses_of(
    found: Densities, truth_N: Floats, target: Target = REDSHIFT_TARGET
) -> dict[str, Floats]:
    """Losses of densities, float64 (N,); NaN where the truth is. A plain number has no outliers."""
    is_known_N = np.isfinite(truth_N)
    safe_N = np.where(is_known_N, truth_N, found.edges[0])
    size_N = np.abs(scaled_residual(piecewise.mean(found), safe_N, target))
    losses = {
        "crps": piecewise.crps(found, safe_N),
        "log_loss": -piecewise.log_likelihood(found, safe_N),
        **{outlier_name(t): (size_N >= t).astype(np.float64) for t in target.thresholds},
    }
    return {name: np.where(is_known_N, values, np.nan) for name, values in losses.items()}


def _columns(
    name: str, base: Densities, seen: list[Densities], truth_N: Floats, target: Target
) -> dict[str, NDArray[Any]]:
    """The columns of one modality, from the densities under K partners."""
    losses = [losses_of(found, truth_N, target) for found in seen]
    columns = {f"{loss}|{name}": np.mean([f[loss] for f in losses], axis=0) for loss in losses[0]}
    mean_KN = np.stack([piecewise.mean(found) for found in seen])
    columns[f"residual|{name}"] = scaled_residual(mean_KN[0], truth_N, target)
    columns[f"salience|{name}"] = salience_of(mean_KN, truth_N, target)
    columns[f"jsd|{name}"] = np.mean([js_distance(base, found) for found in seen], axis=0)
    return columns


def salience_of(mean_KN: Floats, truth_N: Floats, target: Target = REDSHIFT_TARGET) -> Floats:
    """Variance of the estimate over K partners, over (1 + z)^2, float64 (N,); NaN for K = 1."""
    if len(mean_KN) < 2:
        return np.full(mean_KN.shape[1], np.nan)
    spread_N: Floats = mean_KN.var(axis=0, ddof=1) / target.scale(truth_N) ** 2
    return spread_N


def js_distance(one: Densities, other: Densities) -> Floats:
    """Jensen-Shannon distance of densities on the same bins, float64 (N,), from 0 to 1.

    Source: Endres and Schindelin 2003, IEEE Transactions on Information Theory 49, 1858; with
    logarithms of base 2.
    """
    middle = (one.masses + other.masses) / 2

    def relative_entropy(mass: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(mass > 0, mass * np.log2(mass / middle), 0.0)
        total: Floats = terms.sum(axis=1)
        return total

    divergence = (relative_entropy(one.masses) + relative_entropy(other.masses)) / 2
    return np.sqrt(np.maximum(divergence, 0.0))
