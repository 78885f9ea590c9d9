"""msdata, tar, shuffle: see `ours`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.ours import RESUME, load, pack
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="msdata, tar, shuffle",
    packages=("msdata",),
    open=partial(load, "shuffle"),
    convert=partial(pack, "tar"),
    shuffle="uniform",
    resume=RESUME,
    advice="README: hold=1, prefetch=2: each batch is done with before the next; threads=cores",
    is_ours=True,
)
