"""msdata, tar, shuffle, from the node's cache: see `ours`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.ours import RESUME, load, pack
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="msdata, tar, shuffle, cache",
    packages=("msdata",),
    open=partial(load, "shuffle", cache="auto"),
    convert=partial(pack, "tar"),
    shuffle="uniform",
    resume=RESUME,
    advice="README: data that fit in memory: cache='auto' keeps them in shared memory",
    is_ours=True,
)
