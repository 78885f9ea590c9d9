"""Networks, normalization, loss and schedule, each by itself."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

from msdata.topology import Topology
from mstrain.config import LossConfig, ModelConfig, OptimConfig
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks
from mstrain.models import norms
from mstrain.models.heads import bin_edges, bin_of, density
from mstrain.models.loss import BinLoss, draw_weights, redshift_weights
from mstrain.models.norms import RankBatchNorm2d, make_norm, synchronize_norms
from mstrain.models.redshift_net import RedshiftNet
from mstrain.models.resnet import ResNet, SubsamplingConv2d
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
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
    synchronize_norms(model)
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
        average.update(step)
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
    wrapped = train_step._joined(nn.Linear(1, 1), ranks, is_synced=True)
    assert wrapped.options == {name: False}
    assert wrapped.device_ids == [torch.device("cuda", 1)]
    apart = train_step._joined(nn.Linear(1, 1), ranks, is_synced=False)
    assert False not in apart.options.values()


def test_synchronized_norms_keep_parameters_and_buffers_as_objects() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3))
    state = {name: value.data_ptr() for name, value in model.state_dict().items()}
    synced = synchronize_norms(model)
    assert isinstance(synced[1], RankBatchNorm2d)
    assert synced[1].momentum == 0.3
    assert {n: v.data_ptr() for n, v in synced.state_dict().items()} == state


COUNTS = (norms._NONE, 8.0, norms._NONE, 3.0)


def statistics_of_four_ranks() -> tuple[torch.Tensor, ...]:
    """Means, inverse deviations and counts, two of ranks without samples; running statistics."""
    torch.manual_seed(0)
    has_samples = torch.tensor(COUNTS)[:, None] > 1
    mean = torch.where(has_samples, torch.randn(4, 6) * 3, 0.0)
    inverse = torch.where(has_samples, torch.rand(4, 6) + 0.3, 1.0)
    return mean, inverse, torch.zeros(6), torch.ones(6), torch.tensor(COUNTS)


def test_what_a_gpus_kernel_does_with_ranks_without_samples_is_finite_and_right() -> None:
    mean_RC, inverse_RC, running_mean, running_var, counts = statistics_of_four_ranks()
    x = torch.zeros(1, 6, 1, 1)
    found = norms._PlainKernels.combine(
        x, mean_RC, inverse_RC, running_mean, running_var, 0.1, 1e-5, counts
    )
    # The loop of batch_norm_reduce_statistics_kernel (Normalization.cuh), whose n is an integer.
    n, mean, squares = 0, torch.zeros(6), torch.zeros(6)
    for count, rank_mean, inverse in zip(counts, mean_RC, inverse_RC, strict=True):
        factor = 1.0 / (n + count)
        squares += ((1 / inverse) ** 2 - 1e-5) * count
        squares += (mean - rank_mean) ** 2 * n * count * factor
        mean = n * factor * mean + count * factor * rank_mean
        n = int(n + count)
    assert n == 11
    torch.testing.assert_close(found[0], mean)
    torch.testing.assert_close(found[1], torch.rsqrt(squares / n + 1e-5))
    torch.testing.assert_close(running_mean, 0.1 * mean)
    torch.testing.assert_close(running_var, 0.9 + 0.1 * squares / (n - 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpus_kernels_give_what_the_plain_ones_do(layout, dtype) -> None:
    image = torch.randn(4, 6, 5, 3).to(dtype).float()
    gradient = torch.randn(4, 6, 5, 3).to(dtype).float()
    weight, bias = torch.rand(6), torch.rand(6)

    def run(kernels: type, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        x, dy = (t.to(device, dtype).to(memory_format=layout) for t in (image, gradient))
        w, b = weight.to(device), bias.to(device)
        means, inverses, *running, counts = (t.to(device) for t in statistics_of_four_ranks())
        mean, inverse = kernels.combine(x, means, inverses, *running, 0.1, 1e-5, counts)
        total, product, *rest = kernels.reduce(dy, x, mean, inverse, w, True, True, True)
        found = [*kernels.measure(x, 1e-5), mean, inverse, *running, total, product, *rest]
        found.append(kernels.normalize(x, w, b, mean, inverse, 1e-5))
        args = (mean, inverse, w, total, product, counts.int())
        return [*found, kernels.differentiate(dy, x, *args)]

    wanted = run(norms._PlainKernels, "cpu", torch.float32)
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, plain in zip(run(norms._CudaKernels, "cuda", dtype), wanted, strict=True):
        torch.testing.assert_close(ours.cpu().float(), plain, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["nadam", "adamw"])
def test_numbers_of_a_resumed_optimizer_stay_where_the_optimizer_reads_them(name) -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimConfig(name=name))
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    saved = optimizer.state_dict()
    # Parameters on another device, as on a GPU; and a checkpoint of a GPU, as read on the host.
    saved["param_groups"] = [{**group, "fused": True} for group in saved["param_groups"]]
    elsewhere = nn.Linear(3, 2, device="meta")
    other = make_optimizer(elsewhere, OptimConfig(name=name))
    load_optimizer(other, saved)
    assert not any(group.get("fused") for group in other.param_groups if name == "adamw")
    for old, new in zip(model.parameters(), elsewhere.parameters(), strict=True):
        was, now = optimizer.state[old], other.state[new]
        assert now.keys() == was.keys()
        assert now["exp_avg"].device.type == "meta"
        for number in {"step", "mu_product"} & was.keys():
            assert now[number].device.type == "cpu"
            assert now[number] == was[number]


@pytest.fixture
def group_of_two() -> Iterator[Ranks]:
    """One of two ranks, whose process group has this one only."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    yield Ranks(topology=Topology(ranks_per_node=2), device=CPU)
    torch.distributed.destroy_process_group()


CPU = torch.device("cpu")
QUICK = ["depth=10", "width=4", "num_bins=16", "hidden=0", "batch_size=8", "label_width=0"]


def three_steps(ranks: Ranks, *settings: str) -> tuple[train_step.TrainStep, list[float]]:
    config = apply_overrides(find_recipe("demo"), [*QUICK, *settings])
    made = train_step.TrainStep(config, {"image": (2, 16, 16)}, ranks, None, num_steps=10)
    torch.manual_seed(1)
    losses = []
    for step in range(3):
        batch = TensorBatch(
            images={"image": torch.randn(4, 2, 16, 16)},
            ebv=torch.rand(4),
            redshift=known_redshifts(4),
            sample_id=np.array(["a"] * 4),
        )
        made.add(batch)
        losses.append(made.step(step).loss)
    return made, losses


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_ddp_is_compiled_with_the_network_so_that_sums_overlap(
    monkeypatch: pytest.MonkeyPatch, group_of_two: Ranks
) -> None:
    plain, wanted = three_steps(group_of_two)
    assert isinstance(plain._net, DistributedDataParallel)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, found = three_steps(group_of_two, "compile=yes")
    assert isinstance(compiled._net._orig_mod, DistributedDataParallel)
    assert compiled._net._orig_mod.module is compiled.model
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    torch._dynamo.reset()


def test_a_step_walks_through_the_modules_only_after_a_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = Ranks(topology=Topology(), device=CPU)
    made, _ = three_steps(ranks, "ema_decay=0")
    calls = []
    walk = nn.Module.train
    monkeypatch.setattr(
        nn.Module, "train", lambda s, mode=True: calls.append(mode) or walk(s, mode)
    )
    batch = TensorBatch(
        images={"image": torch.randn(4, 2, 16, 16)},
        ebv=torch.rand(4),
        redshift=known_redshifts(4),
        sample_id=np.array(["a"] * 4),
    )
    made.add(batch)
    assert calls == []
    for _ in range(2):
        made.validation_sums(batch)
    assert made.model.training is False
    num_modules = len(list(made.model.modules()))
    assert calls == [False] * num_modules
    made.add(batch)
    made.add(batch)
    assert calls == [False] * num_modules + [True] * num_modules
    assert all(m.training for m in made.model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_float32_under_autocast_so_that_densities_are_not_rounded(dtype) -> None:
    torch.manual_seed(0)
    config = ModelConfig(depth=10, width=4, num_bins=16, hidden=0)
    model = RedshiftNet({"image": (2, 16, 16)}, config).eval()
    # Logits as large as a trained network's, of features that bf16 holds exactly.
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(20)
    features, ebv = torch.randn(64, 32).to(dtype), torch.rand(64)
    with torch.autocast("cpu", dtype):
        logits = model.head(features, ebv)
    assert logits.dtype == torch.float32
    wanted = model.head(features.float(), ebv)
    assert wanted.abs().max() > 8
    torch.testing.assert_close(density(logits, config), density(wanted, config))
    with torch.autocast("cpu", dtype):
        assert model({"image": torch.randn(3, 2, 16, 16)}, ebv[:3]).dtype == torch.float32
