"""bare preadv in the order of the file: see `bare`."""

from __future__ import annotations

from benchmarks.peers.bare import open_sequential, write_records
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="bare preadv in the order of the file",
    packages=(),
    open=open_sequential,
    convert=write_records,
    shuffle="none",
    resume="none: no product",
    advice="no product",
    is_limit=True,
)
