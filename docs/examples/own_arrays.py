"""Writes arrays of your own as a data set, and loads them as batches.

python docs/examples/own_arrays.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import msdata

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "own-arrays")
rng = np.random.default_rng(0)

with msdata.Writer(folder / "DATA") as writer:
    for number in range(200):
        # Names of your choice, the same shapes and dtypes in every sample.
        arrays = {
            "image": rng.normal(size=(3, 32, 32)).astype(np.float32),
            "spectrum": rng.normal(size=(1, 256)).astype(np.float32),
        }
        writer.write(f"{number:07d}", arrays, redshift=float(rng.uniform(0.01, 1.0)))

data = msdata.open(folder / "DATA")
loader = msdata.Loader(data.split("train"), batch_size=32, seed=0, remainder="drop")
for batch in loader:
    assert batch["image"].shape == (32, 3, 32, 32)
    assert batch["spectrum"].shape == (32, 1, 256)
print(f"{len(data.split('train'))} training samples in batches of 32")
