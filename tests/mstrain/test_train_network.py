"""Networks, normalization, loss and schedule, each by itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from msdata.topology import Topology
from mstrain.config import ComputeConfig, LossConfig, ModelConfig, OptimConfig
from mstrain.distributed import Ranks
from mstrain.models.heads import bin_edges, bin_of, density
from mstrain.models.loss import BinLoss, draw_weights, redshift_weights
from mstrain.models.norms import make_norm, synchronize_norms
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.resnet import ResNet, SubsamplingConv2d
from mstrain.training import train_step
from mstrain.training.optim import AveragedModel, learning_rate, load_optimizer, make_optimizer

BINS = ModelConfig(num_bins=16, z_max=1.6)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Of the networks in the paper, without their last layer, for three channels.
@pytest.mark.parametrize(
    ("depth", "parameters", "features"),
    [(18, 11_176_512, 512), (34, 21_284_672, 512), (50, 23_508_032, 2048)],
)
def test_resnets_are_as_large_as_in_the_paper(depth, parameters, features) -> None:
    model = ResNet(3, depth=depth)
    assert num_parameters(model) == parameters
    assert model.num_features == features
    nine = ResNet(9, depth=depth)
    assert num_parameters(nine) == parameters + 6 * 64 * 7 * 7


@pytest.mark.parametrize(("is_small", "side"), [(False, 4), (True, 15)])
def test_maps_of_the_last_stage_are_as_wide_as_the_stem_says(is_small, side) -> None:
    model = ResNet(2, depth=10, width=4, is_small=is_small)
    found = model.stages(model.stem(torch.zeros(1, 2, 120, 120)))
    assert found.shape == (1, 32, side, side)


def test_a_residual_branch_begins_as_zero() -> None:
    block = ResNet(1, depth=10, width=4).stages[0][0]
    image = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(image), image.relu())


SHAPES = {
    "early": {"image": (9, 40, 40)},
    "late": {"panstarrs": (5, 64, 64), "galex": (2, 22, 22), "unwise": (2, 22, 22)},
}


@pytest.mark.parametrize("fusion", SHAPES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_both_fusions_give_logits_that_depend_on_every_band_and_on_ebv(fusion, norm) -> None:
    torch.manual_seed(0)
    config = ModelConfig(depth=10, width=8, norm=norm, num_bins=20, hidden=16)
    model = RedshiftNet(SHAPES[fusion], config)
    # So that the residual branches, which begin as zero, take part.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
    images = {n: torch.randn(3, *s, requires_grad=True) for n, s in SHAPES[fusion].items()}
    ebv = torch.rand(3, requires_grad=True)
    logits = model(images, ebv)
    assert logits.shape == (3, 20)
    logits[0].square().sum().backward()
    for image in images.values():
        assert (image.grad.abs().amax((0, 2, 3)) > 0).all()
    assert ebv.grad[0] != 0
    if norm == "group":
        # Nothing of another sample gets in.
        assert ebv.grad[1] == 0
        assert all(i.grad[1].abs().max() == 0 for i in images.values())


def test_a_network_without_ebv_takes_none() -> None:
    config = ModelConfig(depth=10, width=4, ebv_column=None, hidden=0, num_bins=5)
    model = RedshiftNet({"image": (2, 32, 32)}, config)
    assert model({"image": torch.zeros(2, 2, 32, 32)}).shape == (2, 5)


def test_alone_batch_norm_over_ranks_is_not_put_in_the_way() -> None:
    model = nn.Sequential(make_norm("batch", 4), make_norm("group", 4))
    synchronize_norms(model, torch.device("cpu"))
    assert type(model[0]).__name__ == "RankBatchNorm2d"
    assert type(model[1]) is nn.GroupNorm
    # In evaluation it asks no rank.
    image = torch.randn(3, 4, 5, 5)
    assert torch.equal(model[0].eval()(image), nn.BatchNorm2d(4).eval()(image))


@given(st.floats(0, 1.6), st.integers(2, 500))
def test_a_redshift_lies_between_the_edges_of_its_bin(redshift, num_bins) -> None:
    config = ModelConfig(num_bins=num_bins, z_max=1.6)
    edges = bin_edges(config)
    number = int(bin_of(torch.tensor([redshift], dtype=torch.float64), config)[0])
    assert edges[number] - 1e-12 <= redshift <= edges[number + 1] + 1e-12


def test_what_lies_outside_of_the_bins_has_none() -> None:
    z = torch.tensor([-0.01, 0.0, 1.6, 1.61, math.nan, math.inf], dtype=torch.float64)
    assert bin_of(z, BINS).tolist() == [-1, 0, 15, -1, -1, -1]


def test_a_density_integrates_to_one() -> None:
    p = density(torch.randn(5, 16) * 30, BINS)
    assert torch.allclose(p.sum(1) * 0.1, torch.ones(5, dtype=torch.float64))
    assert (p >= 0).all()


def known_redshifts(n: int = 40) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_cross_entropy(smoothing) -> None:
    logits, z = torch.randn(40, 16), known_redshifts()
    found = BinLoss(LossConfig(label_smoothing=smoothing), BINS)(logits, z)
    wanted = nn.functional.cross_entropy(
        logits, bin_of(z, BINS), label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(found[0], wanted)
    assert found[1] == 40


def test_a_spread_label_is_the_gaussian_over_the_bins() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    z = torch.tensor([0.03, 0.77, 1.59], dtype=torch.float64)
    labels = BinLoss(LossConfig(label_width=0.05), BINS).labels(z)
    edges = bin_edges(BINS).numpy()
    for row, center in zip(labels.numpy(), z.numpy(), strict=True):
        mass = np.diff(scipy_stats.norm(center, 0.05).cdf(edges))
        np.testing.assert_allclose(row, mass / mass.sum(), atol=1e-6)


def test_samples_without_redshift_count_nothing() -> None:
    loss = BinLoss(LossConfig(label_width=0.02), BINS)
    logits, z = torch.randn(40, 16), known_redshifts()
    unknown = torch.cat([z, torch.tensor([math.nan, 9.0, -1.0], dtype=torch.float64)])
    more = torch.cat([logits, torch.randn(3, 16)]).requires_grad_()
    found, wanted = loss(more, unknown), loss(logits, z)
    torch.testing.assert_close(found, wanted)
    found[0].backward()
    assert (more.grad[40:] == 0).all()


def test_weights_are_one_over_the_count_with_mean_one() -> None:
    z = np.concatenate([np.full(30, 0.05), np.full(10, 0.85), [np.nan, -1, 3]])
    config = LossConfig(weighting="inverse_count", weight_bins=16)
    weights = redshift_weights(z, config, 1.6)
    assert weights[0] * 3 == pytest.approx(float(weights[8]))
    assert (weights > 0).sum() == 2
    total = BinLoss(config, BINS, weights)(torch.zeros(43, 16), torch.from_numpy(z))[1]
    assert float(total) == pytest.approx(40)


def test_the_sum_over_parts_is_that_of_the_whole_batch() -> None:
    z = known_redshifts()
    config = LossConfig(weighting="inverse_count", weight_bins=5)
    loss = BinLoss(config, BINS, redshift_weights(z.numpy(), config, 1.6))
    logits = torch.randn(40, 16)
    parts = [loss(logits[s], z[s]) for s in (slice(0, 27), slice(27, 40), slice(40, 40))]
    summed = torch.stack([torch.stack(p) for p in parts]).sum(0)
    torch.testing.assert_close(summed, torch.stack(loss(logits, z)))


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    config = OptimConfig(learning_rate=1.0, warmup=0.1, final_rate=0.1)
    rates = [learning_rate(s, 100, config) for s in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[55] == pytest.approx(0.55)
    assert learning_rate(100, 100, config) == pytest.approx(0.1)
    assert learning_rate(0, 1, OptimConfig(warmup=0.0)) > 0


@pytest.mark.parametrize("name", ["nadam", "adamw"])
def test_only_kernels_and_matrices_decay(name) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = make_optimizer(model, OptimConfig(name=name, weight_decay=0.5))
    decaying, others = optimizer.param_groups
    assert [p.shape for p in decaying["params"]] == [(2, 1, 3, 3)]
    assert decaying["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 3


def test_the_average_follows_weights_and_batch_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = AveragedModel(model, 0.9)
    wanted = {n: v.clone() for n, v in model.state_dict().items()}
    for step in range(200):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.ones_like(value))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                wanted[name] = decay * wanted[name] + (1 - decay) * value
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, wanted[name])
    assert average.model[1].num_batches_tracked == 200
    assert not any(p.requires_grad for p in average.model.parameters())


def test_samples_are_drawn_by_what_they_would_weigh_in_the_loss() -> None:
    z = np.random.default_rng(0).gamma(2, 0.3, 500)
    z[:9] = [np.nan, -0.1, 1.7, 0, 1.6, np.nan, 0.1, 0.2, 0.3]
    config = LossConfig(weighting="inverse_count", weights_in="sampler", weight_bins=16)
    drawn = draw_weights(z, config, 1.6)
    assert (drawn > 0).tolist() == ((z >= 0) & (z <= 1.6)).tolist()
    loss = BinLoss(config, BINS, redshift_weights(z, config, 1.6))
    weighed = loss._weight(torch.from_numpy(z), bin_of(torch.from_numpy(z), BINS)).numpy()
    known = drawn > 0
    np.testing.assert_allclose(drawn / drawn.sum(), weighed / weighed.sum(), rtol=1e-5)
    # Every bin that has samples is drawn as often as any other.
    bins = np.minimum((z[known] / 0.1).astype(int), 15)
    sums = np.bincount(bins, drawn[known])
    assert sums[sums > 0] == pytest.approx(1)


NARROW_NETWORK_ON_NINE_THREADS = """
import torch
from mstrain.config import ModelConfig
from mstrain.models.redshift_net import RedshiftNet
torch.set_num_threads(9)
model = RedshiftNet({"x": (3, 44, 44)}, ModelConfig(depth=10, width=8, num_bins=4, ebv_column=None))
model = model.to(memory_format=torch.channels_last)
for _ in range(4):
    images = torch.rand(31, 3, 44, 44).to(memory_format=torch.channels_last)
    model({"x": images}).square().sum().backward()
print("alive")
"""


def test_a_narrow_network_trains_on_many_threads() -> None:
    # oneDNN's strided 1x1 convolutions wrote past their memory: in a process that may crash.
    run = subprocess.run(
        [sys.executable, "-c", NARROW_NETWORK_ON_NINE_THREADS], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


@pytest.mark.parametrize("size", [(1, 1), (6, 7), (9, 8)])
def test_a_subsampling_convolution_is_a_strided_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 3, 1, 2, bias=False)
    ours = SubsamplingConv2d(5, 3, 1, 2, bias=False)
    ours.load_state_dict(plain.state_dict())
    image = torch.rand(2, 5, *size)
    torch.testing.assert_close(ours(image), plain(image))


class OldJoined(nn.Module):
    """Takes what DistributedDataParallel of older torches takes."""

    def __init__(self, net, device_ids=None, gradient_as_bucket_view=False, **options) -> None:
        super().__init__()
        self.device_ids, self.options = device_ids, options


class NewJoined(OldJoined):
    """The same, with the option's newer name in its signature."""

    def __init__(self, net, forward_sync_buffers=True, **options) -> None:
        super().__init__(net, forward_sync_buffers=forward_sync_buffers, **options)


@pytest.mark.parametrize(
    ("joined", "name"),
    [(OldJoined, "broadcast_buffers"), (NewJoined, "forward_sync_buffers")],
)
def test_synchronized_buffers_are_not_sent_again_whatever_torch_calls_that(
    monkeypatch: pytest.MonkeyPatch, joined: type, name: str
) -> None:
    monkeypatch.setattr(train_step, "DistributedDataParallel", joined)
    ranks = Ranks(topology=Topology(ranks_per_node=2), device=torch.device("cuda", 1))
    wrapped = train_step._wrapped(nn.Linear(1, 1), ComputeConfig(), ranks, is_synced=True)
    assert wrapped.options == {name: False}
    assert wrapped.device_ids == [torch.device("cuda", 1)]
    apart = train_step._wrapped(nn.Linear(1, 1), ComputeConfig(), ranks, is_synced=False)
    assert False not in apart.options.values()


@pytest.mark.parametrize(("num_samples", "meets"), [(0, torch.float32), (2, torch.bfloat16)])
def test_a_gpu_without_samples_takes_part_in_float32_as_the_others_do(
    monkeypatch: pytest.MonkeyPatch, num_samples: int, meets: torch.dtype
) -> None:
    met: list[torch.dtype] = []

    def forward(norm: nn.Module, image: torch.Tensor) -> torch.Tensor:
        met.append(image.dtype)
        return image

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {name: value.data_ptr() for name, value in model.state_dict().items()}
    synced = synchronize_norms(model, torch.device("cuda"))
    assert isinstance(synced[1], nn.SyncBatchNorm)
    assert {n: v.data_ptr() for n, v in synced.state_dict().items()} == state
    found = synced[1](torch.ones(num_samples, 4, 2, 2, dtype=torch.bfloat16))
    assert (met, found.dtype) == ([meets], torch.bfloat16)


@pytest.mark.parametrize("name", ["nadam", "adamw"])
def test_numbers_of_a_resumed_optimizer_stay_on_the_host(name) -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimConfig(name=name))
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    saved = optimizer.state_dict()
    # Parameters on another device, as on a GPU.
    elsewhere = nn.Linear(3, 2, device="meta")
    other = make_optimizer(elsewhere, OptimConfig(name=name))
    load_optimizer(other, saved)
    for old, new in zip(model.parameters(), elsewhere.parameters(), strict=True):
        was, now = optimizer.state[old], other.state[new]
        assert now.keys() == was.keys()
        assert now["exp_avg"].device.type == "meta"
        for number in {"step", "mu_product"} & was.keys():
            assert now[number].device.type == "cpu"
            assert now[number] == was[number]
