"""msdata, tar, block: see `ours`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.ours import RESUME, load, pack
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="msdata, tar, block",
    packages=("msdata",),
    open=partial(load, "block"),
    convert=partial(pack, "tar"),
    shuffle="shards in random order, shuffled in a buffer",
    resume=RESUME,
    advice="README: num_valid_batches=1, prefetch=2 for batches used one by one; threads=cores",
    is_ours=True,
)
