"""From arrays of your own to a trained and evaluated network.

python docs/examples/train_on_arrays.py FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import msdata
import mstrain

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "my-network")
rng = np.random.default_rng(0)

with msdata.Writer(folder / "DATA") as writer:
    for number in range(200):
        image = rng.normal(number % 2, 1, size=(1, 16, 16)).astype(np.float32)
        writer.write(f"{number:04d}", {"image": image}, kind=["faint", "bright"][number % 2])

data = msdata.open(folder / "DATA")
# Texts are classes; of a column of numbers the network gives densities.
config = replace(mstrain.auto(data, target="kind"), epochs=2)
run = mstrain.train(config, data, folder / "RUN").run
found = mstrain.evaluate(run, data, split="test")
print(f"accuracy {found.summary.overall['accuracy'].value:.3f}, {found.report}")
