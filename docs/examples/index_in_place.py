"""Opens an HDF5 file where it lies: no pixel is copied.

python docs/examples/index_in_place.py FOLDER
"""

import sys
from pathlib import Path

import h5py
import numpy as np

import msdata

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "in-place")
folder.mkdir(parents=True)
rng = np.random.default_rng(0)

# A file of someone else's: contiguous, or in chunks without a filter.
with h5py.File(folder / "galaxies.h5", "w") as file:
    file["images"] = rng.normal(size=(200, 3, 32, 32)).astype(np.float32)
    file["redshift"] = rng.uniform(0.01, 1.0, size=200)

msdata.index(folder / "galaxies.h5", folder / "DATA")

data = msdata.open(folder / "DATA")
for batch in msdata.Loader(data.split("train"), batch_size=32, seed=0, remainder="drop"):
    assert batch["images"].shape == (32, 3, 32, 32)
print(f"{len(data)} samples in place")
