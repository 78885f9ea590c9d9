"""msdata, HDF5, shuffle: see `ours`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.ours import RESUME, load, pack
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="msdata, HDF5, shuffle",
    packages=("msdata",),
    open=partial(load, "shuffle"),
    convert=partial(pack, "hdf5"),
    shuffle="uniform",
    resume=RESUME,
    advice="README: num_valid_batches=1, prefetch=2 for batches used one by one; threads=cores",
    is_ours=True,
)
