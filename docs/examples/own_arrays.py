"""Writes arrays of your own, packs them, and loads them as batches.

python docs/examples/own_arrays.py FOLDER
"""

import csv
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

import msdata

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "own-arrays")
objects = folder / "objects"
objects.mkdir(parents=True)

# One pickled dict per object: names of your choice, the same shapes and dtypes in every object.
rng = np.random.default_rng(0)
with (folder / "catalog.csv").open("w", newline="") as file:
    catalog = csv.writer(file)
    catalog.writerow(["object_id", "redshift"])
    for number in range(200):
        arrays = {
            "image": rng.normal(size=(3, 32, 32)).astype(np.float32),
            "spectrum": rng.normal(size=(1, 256)).astype(np.float32),
        }
        (objects / f"{number:07d}.pkl").write_bytes(pickle.dumps(arrays))
        catalog.writerow([f"{number:07d}", round(float(rng.uniform(0.01, 1.0)), 4)])

pack = ["msdata", "pack", objects, folder / "DATA", "--catalog", folder / "catalog.csv"]
subprocess.run(pack, check=True)

data = msdata.open(folder / "DATA")
loader = msdata.Loader(data.split("train"), batch_size=32, seed=0, remainder="drop")
for batch in loader:
    assert batch["image"].shape == (32, 3, 32, 32)
    assert batch["spectrum"].shape == (32, 1, 256)
print(f"{len(data.split('train'))} training samples in batches of 32")
