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
    advice="README: hold=1, prefetch=2: each batch is done with before the next; threads=cores",
    is_ours=True,
)
