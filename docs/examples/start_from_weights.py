"""The same training on a few objects, from scratch and from a network of other objects.

python docs/examples/start_from_weights.py MANY FEW OUT [key=value ...]
"""

import sys
from dataclasses import replace
from pathlib import Path

import mstrain
from mstrain.overrides import apply_overrides

many, few, out = (Path(word) for word in sys.argv[1:4])
config = apply_overrides(mstrain.RECIPES["demo"](), sys.argv[4:])
trained = mstrain.train(config, many, out / "trained", is_quiet=True).run

for seed in range(5):
    crps = []
    for name, init in (("scratch", None), ("init", trained)):
        run = out / f"{name}-{seed}"
        mstrain.train(replace(config, seed=seed), few, run, init=init, is_quiet=True)
        found = mstrain.evaluate(run, few, split="test", has_report=False, is_quiet=True)
        crps.append(found.summary.density["crps"].value)
    print(f"seed {seed}: CRPS from scratch {crps[0]:.4f}, with init {crps[1]:.4f}", flush=True)
