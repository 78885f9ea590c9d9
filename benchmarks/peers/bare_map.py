"""memory map of one file of records: see `bare`."""

from __future__ import annotations

from benchmarks.peers.bare import open_map, write_records
from benchmarks.peers.protocol import Peer

PEER = Peer(
    title="memory map of one file of records",
    packages=(),
    open=open_map,
    convert=write_records,
    shuffle="uniform",
    resume="none: no product",
    advice="no product",
    is_limit=True,
)
