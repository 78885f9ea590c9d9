"""What the tests of training share: a data set, settings that are quick, ranks as processes."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packing

NUM_OBJECTS = 60
# A narrow network on coarse images; one thread, since the ranks share the cores.
SETTINGS: dict[str, str] = {
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


def make_source(folder: Path) -> Path:
    """Objects of the default schema whose brightness tells their redshift, and a catalog."""
    rows = ["mantis_id,redshift,ebv_csfd,ra,dec"]
    for number in range(NUM_OBJECTS):
        redshift = 0.02 + number % 30 / 20
        sample = packing.mantis_object(number)
        path = folder / "photometry" / f"{number:07d}.npy"
        packing.write_object(path, {n: a * (1 + redshift) for n, a in sample.items()})
        rows.append(f"{number},{redshift},{0.01 + number % 7 / 50},{number}.5,{number}.25")
    (folder / "catalog.csv").write_text("\n".join(rows) + "\n")
    return folder


def words_of(data: Path, out: Path, **settings: Any) -> list[str]:
    """`train demo` with quick settings; `a__b` stands for `a.b`."""
    given = {**SETTINGS, **{n.replace("__", "."): v for n, v in settings.items()}}
    return ["train", "demo", str(data), "--out", str(out)] + [f"{n}={v}" for n, v in given.items()]


def run_program(words: Sequence[str]) -> None:
    """Runs a Python file with arguments in this process, as `python FILE ...` does."""
    given, sys.argv = sys.argv, [*words]
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv = given


class Rank:
    """A rank as a process of its own, which outlives its command; see `training_rank.py`.

    Attributes:
        printed: by its last command.
    """

    def __init__(self) -> None:
        self.printed = ""
        program = [sys.executable, str(Path(__file__).with_name("training_rank.py"))]
        self.process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=packing.environment(OMP_NUM_THREADS="1"),
        )

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Has it run a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"words": words, "environment": environment}) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int | None, str]:
        """The command's exit code, and what it said on stderr; None for one that was killed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None, ""
        answer = json.loads(line)
        self.printed = answer["printed"]
        return answer["code"], answer["said"]


class Ranks:
    """The processes of all tests of a session; a context manager."""

    def __init__(self) -> None:
        self._idle: list[Rank] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *of_error: object) -> None:
        for rank in self._idle:
            rank.process.kill()
            rank.process.communicate()

    def start(self, words: Sequence[str], num_ranks: int = 1, num_nodes: int = 1) -> list[Rank]:
        """Starts a command on so many ranks, as a launcher would; nodes are pretended."""
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        place |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks // num_nodes)}
        while len(self._idle) < num_ranks:
            self._idle.append(Rank())
        ranks = [self._idle.pop(0) for _ in range(num_ranks)]
        for number, rank in enumerate(ranks):
            rank.start(words, {**place, "RANK": str(number)})
        return ranks

    def end(self, ranks: Sequence[Rank]) -> tuple[list[int | None], str]:
        """Waits for the ranks; their exit codes, and what they said on stderr."""
        answers = [rank.end() for rank in ranks]
        for rank, (code, _) in zip(ranks, answers, strict=True):
            if code is None:
                rank.process.communicate()
            else:
                self._idle.append(rank)
        return [code for code, _ in answers], "".join(said for _, said in answers)

    def run(self, words: Sequence[str], num_ranks: int = 1, num_nodes: int = 1) -> str:
        """Runs a command to its good end; what the ranks said on stderr."""
        codes, said = self.end(self.start(words, num_ranks, num_nodes))
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
    # Here, since conftest imports this file: torch comes with it, and takes seconds.
    from mstrain.training.metrics_log import read_journal

    return np.array([line["loss"] for line in read_journal(run) if line["kind"] == kind])


def run_with_fit(source: Path, data: Path, folder: Path) -> Path:
    """A copy of a run that keeps a fit of `mstrain flag` on the pixels of its data, `folder/RUN`.

    Table and flags lie beside it, `e.parquet` and `ood.parquet`.
    """
    import pytest

    import mstrain
    from mstrain.cli import main
    from mstrain.embedding import flag as flagging

    run = folder / "RUN"
    run.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
        elif path.name == "checkpoints":
            (run / path.name).symlink_to(path.absolute())
    table = folder / "e.parquet"
    mstrain.embed(run, data, table, layer="pixels", device="cpu", is_quiet=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flagging, "_MIN_VALIDATION", 5)
        words = ["flag", str(table), str(folder / "ood.parquet"), "--json", "--device", "cpu"]
        assert main([*words, "--k", "3", "--keep", str(run)]) == 0
    return run
