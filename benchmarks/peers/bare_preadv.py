"""bare preadv of one file of records: see `bare`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.bare import open_preadv, write_records
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="bare preadv of one file of records",
    packages=(),
    open=partial(open_preadv, 2),
    convert=write_records,
    shuffle="uniform",
    resume="none: no product",
    advice="no product",
    is_limit=True,
)
