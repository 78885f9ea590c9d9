"""What the tests of training share: a data set, settings that are quick, ranks as processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packing

from mstrain.journal import read_journal

NUM_OBJECTS = 60
# A narrow network on coarse images; one thread, since the ranks share the cores.
SETTINGS = {
    "output_size": "24",
    "scaling": "linear10",
    "depth": "10",
    "width": "8",
    "hidden": "16",
    "num_bins": "16",
    "label_width": "0",
    "batch_size": "12",
    "epochs": "3",
    "log.every_steps": "1",
    "tensorboard": "no",
    "compute.threads": "1",
    "data.threads": "1",
}
TIMEOUT_S = 120.0


def make_source(folder: Path) -> Path:
    """Objects of the default schema whose brightness tells their redshift, and a catalogue."""
    rows = ["mantis_id,redshift,ebv_csfd,ra,dec"]
    for number in range(NUM_OBJECTS):
        redshift = 0.02 + number % 30 / 20
        sample = packing.mantis_object(number)
        path = folder / "photometry" / f"{number:07d}.npy"
        packing.write_object(path, {n: a * (1 + redshift) for n, a in sample.items()})
        rows.append(f"{number},{redshift},{0.01 + number % 7 / 50},{number}.5,{number}.25")
    (folder / "catalog.csv").write_text("\n".join(rows) + "\n")
    return folder


def command(data: Path, out: Path, **settings: Any) -> list[str]:
    """`mstrain train demo` with quick settings; `a__b` stands for `a.b`."""
    given = {**SETTINGS, **{n.replace("__", "."): v for n, v in settings.items()}}
    words = [f"{name}={value}" for name, value in given.items()]
    return [sys.executable, "-m", "mstrain.train", "demo", str(data), "--out", str(out), *words]


def start_ranks(
    words: Sequence[str], num_ranks: int, env: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts a command on so many ranks of one node, as a launcher would."""
    place = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    return [
        packing.start(words, packing.environment(**place, **(env or {}), RANK=str(rank)))
        for rank in range(num_ranks)
    ]


def end_ranks(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Waits for ranks; their exit codes and what they said on stderr."""
    try:
        said = [p.communicate(timeout=TIMEOUT_S)[1] for p in processes]
    finally:
        for process in processes:
            packing.kill_group(process)
    return [p.returncode for p in processes], "".join(said)


def run_ranks(words: Sequence[str], num_ranks: int = 1) -> str:
    """Runs a command on so many ranks to its good end; what they said on stderr."""
    codes, said = end_ranks(start_ranks(words, num_ranks))
    assert codes == [0] * num_ranks, said
    return said


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def losses(run: Path, kind: str = "step") -> np.ndarray:
    """The losses of a run's steps, or epochs."""
    return np.array([line["loss"] for line in read_journal(run) if line["kind"] == kind])
