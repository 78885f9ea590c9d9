"""The same training on a few objects, from scratch and from a network of other objects.

python docs/examples/start_from_weights.py MANY FEW OUT [key=value ...]
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mstrain
from mstrain.overrides import apply_overrides


def compare(
    config: mstrain.TrainConfig,
    trained: Path,
    few: Path,
    out: Path,
    seeds: Sequence[int],
    split: str,
) -> Iterator[dict[str, float]]:
    """CRPS of both ways, seed by seed; a second run over the same folder resumes."""
    for seed in seeds:
        crps = {}
        for name, init in (("scratch", None), ("init", trained)):
            run = out / f"{name}-{seed}"
            mstrain.train(replace(config, seed=seed), few, run, init=init, is_quiet=True)
            found = mstrain.evaluate(run, few, split=split, has_report=False, is_quiet=True)
            crps[name] = found.summary.density["crps"].value
        yield crps


if __name__ == "__main__":
    many, few, out = (Path(word) for word in sys.argv[1:4])
    config = apply_overrides(mstrain.RECIPES["demo"](), sys.argv[4:])
    trained = mstrain.train(config, many, out / "trained", is_quiet=True).run
    for crps in compare(config, trained, few, out, range(5), "test"):
        print(f"CRPS from scratch {crps['scratch']:.4f}, with init {crps['init']:.4f}", flush=True)
