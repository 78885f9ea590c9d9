"""A run that several test files of `mstrain` share."""

from __future__ import annotations

from pathlib import Path

import pytest
import training


@pytest.fixture(scope="session")
def weighted_run(galaxies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with weights in its loss, scaled by the statistics that it keeps."""
    # Here, since other folders' conftest imports nothing of torch.
    import mstrain
    from mstrain.overrides import apply_overrides

    settings = {**training.SETTINGS, "epochs": "1", "scaling": "asinh"}
    settings |= {"loss.weighting": "inverse_count", "loss.weight_bins": "8"}
    config = apply_overrides(mstrain.RECIPES["demo"](), [f"{n}={v}" for n, v in settings.items()])
    run = tmp_path_factory.mktemp("weighted") / "run"
    return mstrain.train(config, galaxies, run, is_quiet=True).run
