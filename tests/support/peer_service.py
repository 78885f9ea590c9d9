"""A service that the contract suite of the transports starts under mpiexec; see `MpiSuite`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peer_records import RECORDS, cached_records

from msdata.cache.config import CacheConfig, Owners
from msdata.cache.service import Service
from msdata.cache.transport.group import ending_together
from msdata.cache.transport.mpi_group import open_group
from msdata.errors import StorageError
from msdata.topology import from_env


def main() -> None:
    order = json.loads(sys.argv[1])
    kept = {int(sample): node for sample, node in order["kept"].items()}
    owner = np.array([order["owners"][s] for s in range(len(RECORDS))], np.int32)

    def own(memory: Any, ssd: Any) -> Owners:
        return owner, np.zeros(len(owner), np.int8)

    def read(sample: int) -> Any:
        if sample not in kept:
            raise StorageError("not there")
        return RECORDS[sample]

    group = open_group(from_env())
    config = CacheConfig(memory_gib=1e-3, job="contract", shm_dir=Path(order["shm_dir"]))
    with (
        ending_together(group),
        Service(group, config, cached_records(), own, lambda: read) as service,
    ):
        service.open("host")
        is_said = False
        while service.turn():
            if not is_said and service.describe()["is_full"]:
                name = Path(order["shm_dir"], f"ready-{service.node}")
                name.with_suffix(".new").write_text(str(os.getpid()))
                name.with_suffix(".new").rename(name)
                is_said = True


if __name__ == "__main__":
    main()
