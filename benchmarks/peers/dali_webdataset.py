"""DALI's `readers.webdataset` on the CPU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.dali import RESUME, epochs_of
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.webdataset_tars import write_tars

_BUFFER_SAMPLES = 1024


def _convert(objects: Path, out: Path, reading: Reading) -> None:
    write_tars(objects, out, reading)
    for path in sorted(out.glob("*.tar")):
        _write_index(path)


def _write_index(path: Path) -> None:
    """The index that its tool `wds2idx` writes: where each member lies, without looking inside."""
    import tarfile

    lines, members, last = [], [], None
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = Path(member.name).name.partition(".")
            if key != last and members:
                lines.append(" ".join(members))
                members = []
            last = key
            members.append(f"{suffix} {member.offset_data} {member.size} {member.name}")
    lines.append(" ".join(members))
    text = "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n"
    path.with_suffix(".idx").write_text(text, encoding="utf-8")


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    from nvidia.dali import fn, pipeline_def

    tars = sorted(str(path) for path in data.glob("*.tar"))

    @pipeline_def(
        batch_size=reading.batch_size,
        num_threads=reading.num_workers,
        device_id=None,
        seed=reading.seed,
    )
    def pipe() -> Any:
        members = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar[:-4] + ".idx" for tar in tars],
            ext=[*(f"{name}.npy" for name in reading.arrays), "id.npy"],
            random_shuffle=True,
            initial_fill=_BUFFER_SAMPLES,
        )
        return tuple(fn.decoders.numpy(member) for member in members)

    with contextlib.redirect_stdout(io.StringIO()):
        pipeline = pipe()
        pipeline.build()
    yield epochs_of(
        pipeline, reading, lambda out: np.asarray(out.as_tensor()).reshape(-1).astype(np.int64)
    )


PEER = Peer(
    title="DALI readers.webdataset",
    packages=("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    open=_open,
    convert=_convert,
    shuffle=f"buffer of {_BUFFER_SAMPLES:,} samples, shards in order",
    resume=RESUME,
    advice="DALI, readers.webdataset: an index beside each tar, initial_fill at its default",
)
