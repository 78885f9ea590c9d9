"""A neural spline flow: the density of coordinates of a training, for what distances do not tell.

Of objects that lie where few of the training's do, though near to them, a density knows; that of a
flow is small to keep, and costs the same however many objects the training had. The flow's spline
covers five standard deviations; beyond them it is linear.

Source: Durkan, Bekasov, Murray and Papamakarios 2019, arXiv:1906.04032, by zuko.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msdata.errors import DataError, needing
from mstrain.evaluation.metrics.densities import Floats

_TRANSFORMS, _HIDDEN, _BINS = 3, (64, 64), 8
# The average over the last steps is smoother than any of them.
_RATE, _WEIGHT_DECAY, _AVERAGE = 2e-3, 1e-4, 0.98
_SMALLEST_BATCH, _LARGEST_BATCH = 256, 4096
# Steps between two looks at the validation objects, at most so many of them, and how many looks
# without a better likelihood end the training.
_STEPS, _MAX_STEPS, _PATIENCE = 50, 20_000, 6
_MAX_VALIDATION = 20_000
# Rows at a time, and what stands for a density of 0.
_ROWS, _LEAST = 8192, -1e9


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """A fitted flow.

    Attributes:
        num_axes: C, coordinates.
        state: its weights by name, on the CPU.
    """

    num_axes: int
    state: Mapping[str, Tensor]

    def log_density(
        self, value_NC: NDArray[np.float32], device: torch.device | str = "cpu"
    ) -> Floats:
        """Logarithm of the density at coordinates (N, C), float64 (N,); -1e9 where it is 0.

        Raises:
            DataError: the weights are not those of such a flow.
        """
        flow = _new(self.num_axes)
        try:
            flow.load_state_dict(dict(self.state))
        except RuntimeError:
            raise DataError("the flow's weights do not fit its coordinates; fit it again") from None
        flow = flow.to(device)
        with torch.inference_mode():
            parts = [
                flow().log_prob(torch.from_numpy(value_NC[n : n + _ROWS]).to(device)).cpu()
                for n in range(0, len(value_NC), _ROWS)
            ]
        found = torch.cat([torch.zeros(0), *parts]).double().numpy()
        return np.asarray(np.nan_to_num(found, nan=_LEAST).clip(min=_LEAST), np.float64)


def check_zuko() -> None:
    """Raises MissingPackageError where zuko is not installed."""
    with needing("the density by a flow needs zuko", "flow"):
        import zuko  # noqa: F401


def fit_flow(
    train_NC: NDArray[np.float32],
    validation_VC: NDArray[np.float32],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Flow:
    """Fits a flow by likelihood; the state that validation objects are likeliest by is kept.

    Args:
        train_NC: float32 (N, C), coordinates of about unit variance.
        validation_VC: float32 (V, C).
        seed: of its first weights and the order of objects.
        device: where it is fitted.

    Returns:
        The flow, the same for the same arguments; torch's random state is left as it was.

    Raises:
        MissingPackageError: zuko is not installed.
        DataError: no state gives validation objects a finite likelihood.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = _new(train_NC.shape[1]).to(device)
    average = get_ema_multi_avg_fn(_AVERAGE)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(flow, multi_avg_fn=average)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    train = torch.from_numpy(train_NC)
    held = torch.from_numpy(validation_VC[:_MAX_VALIDATION]).to(device)
    size = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, len(train) // 64))
    best, state, num_worse = np.inf, dict[str, Tensor](), 0
    for step in range(1, _MAX_STEPS + 1):
        rows = torch.randint(len(train), (size,), generator=random)
        loss = -flow().log_prob(train[rows].to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        averaged.update_parameters(flow)
        if step % _STEPS:
            continue
        with torch.no_grad():
            found = -float(averaged.module().log_prob(held).mean())
        if found < best:
            best, num_worse = found, 0
            state = {n: t.detach().cpu().clone() for n, t in averaged.module.state_dict().items()}
        elif (num_worse := num_worse + 1) == _PATIENCE:
            break
    if not state:
        raise DataError(
            "cannot fit a flow: validation objects have no density at all; give --density neighbors"
        )
    return Flow(num_axes=train_NC.shape[1], state=state)


def _new(num_axes: int) -> Any:
    check_zuko()
    import zuko

    return zuko.flows.NSF(num_axes, bins=_BINS, transforms=_TRANSFORMS, hidden_features=_HIDDEN)
