"""Checkpoints: whole or not at all, read without executing anything, few kept.

RUN/config.json                     the resolved configuration
RUN/checkpoints/step-00001234.pt    all that a resume needs
RUN/checkpoints/last                JSON that names the newest
RUN/checkpoints/best.pt             the weights with the least validation loss
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch

import msdata
from msdata.core.checked_json import JsonValue, Within, open_regular, read_json
from msdata.core.files import (
    open_known,
    remove_leftovers,
    storage_error,
    take_lock,
    whole_file,
    write_whole,
)
from msdata.core.output_file import check_output
from msdata.dataset.index import file_sha256
from msdata.errors import DataError, MsdataError, UsageError
from msdata.schema import Schema
from mstrain.config import TrainConfig
from mstrain.models.model_file import is_model_file, read_model_file
from mstrain.models.redshift_net import RedshiftNet

# 2: with the prior of the training, which an earlier mstrain would not put back.
FORMAT_VERSION = 2
_FOLDER = "checkpoints"
_LAST = "last"
_BEST = "best.pt"
_STEP_NAME = re.compile(r"step-\d{8,}\.pt")
_LOCK = ".lock"
_Length = Annotated[int, Within(1, 1 << 20)]
# A killed training may take as long to end and let go of its run.
_LOCK_PATIENCE_S = 15.0


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    return {
        "msdata": msdata.__version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def check_run_folder(run: Path) -> None:
    """Refuses a folder whose files a training would replace though none made them.

    Raises:
        UsageError: there is such a file.
    """
    check_output(run / "config.json", b'"fingerprint"')
    check_output(run / "metrics.jsonl", b'"kind": "')


class RunLockedError(UsageError):
    """Another training writes to the run's folder. Exit code 2."""


@contextmanager
def locked_run(run: Path, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Keeps a second training out of a run's folder, which is made if it is not there.

    Raises:
        RunLockedError: another training holds it for longer than the patience.
        StorageError: the file system refused.
    """
    path = run / _LOCK
    try:
        (run / _FOLDER).mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_known(path), "rb")
    except OSError as error:
        raise storage_error("write", run, error) from error
    with file:
        deadline = time.monotonic() + patience_s
        while not take_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise RunLockedError(
                    f"another training writes to {run}; wait for it, or give another --out"
                )
            time.sleep(0.1)
        # Of a training that was killed while it wrote one.
        remove_leftovers(run / _FOLDER)
        yield


def save_checkpoint(run: Path, state: Mapping[str, Any], *, step: int, keep: int) -> Path:
    """Writes a checkpoint, makes it the last, and removes the oldest.

    Args:
        run: the run's folder.
        state: tensors and plain values.
        step: number of steps, a part of its name.
        keep: how many checkpoints stay.

    Returns:
        Its file.

    Raises:
        StorageError: the file system refused; the former checkpoints stay.
    """
    path = run / _FOLDER / f"step-{step:08d}.pt"
    _write(path, state)
    write_whole(path.with_name(_LAST), json.dumps({"file": path.name, "step": step}).encode())
    for old in _step_files(run)[:-keep]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def save_best(run: Path, state: Mapping[str, Any]) -> None:
    """Writes the weights that did best so far."""
    _write(run / _FOLDER / _BEST, state)


def _write(path: Path, state: Mapping[str, Any]) -> None:
    content = {"format_version": FORMAT_VERSION, "versions": versions(), **state}
    with whole_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch reports a full disk as its own failure to write the archive.
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from error
            raise


def _step_files(run: Path) -> list[Path]:
    return sorted((run / _FOLDER).glob("step-*.pt"))


def step_names(run: Path) -> list[str]:
    """Names of the checkpoints that a run kept, by step; `checkpoint_path` takes them."""
    return [path.stem for path in _step_files(run) if _STEP_NAME.fullmatch(path.name)]


def find_last(run: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none.

    Raises:
        DataError: `last` names a missing file.
    """
    files = _step_files(run)
    try:
        named = read_json(run / _FOLDER / _LAST, cure="")["file"].read_as(str)
    except (FileNotFoundError, NotADirectoryError):
        # Killed between its first checkpoint and `last`: the file is whole all the same.
        return files[-1] if files else None
    except DataError:
        named = files[-1].name if files else ""
    path = run / _FOLDER / named
    if _STEP_NAME.fullmatch(named) is None or not path.is_file():
        raise DataError(
            f"{run / _FOLDER / _LAST} names {named}, which is missing; put it back, or remove "
            f"{run / _FOLDER / _LAST} to resume from the newest file there"
        )
    return path


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        DataError: the file is corrupt or not a checkpoint.
        UsageError: a later version wrote the file.
        StorageError: the file system refused.
    """
    cure = f"remove it and {path.with_name(_LAST)}, and the run resumes from the checkpoint before"
    content = read_tensors(path, cure, device)
    if not isinstance(content, dict) or "format_version" not in content:
        raise DataError(f"{path} is not a checkpoint of mstrain; give a run's folder")
    version = JsonValue(content, path, cure)["format_version"].read_as(int)
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {version}, this mstrain reads up to {FORMAT_VERSION}; "
            "update it"
        )
    return content


def read_tensors(path: Path, cure: str, device: torch.device | str = "cpu") -> Any:
    """Reads what `torch.save` wrote: tensors and plain values; nothing in it is executed.

    Raises:
        DataError: the file is corrupt or holds something else.
        StorageError: the file system refused.
    """
    try:
        # torch compares no checksums, though it writes them.
        with open_regular(path, cure) as file, zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged}")
        return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise storage_error("read", path, error) from error
    except DataError:
        raise
    except Exception as error:
        # Of a file that is none, torch's reader may raise whatever its bytes led it to.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} is corrupt or not a checkpoint ({reason}); {cure}") from error


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turns what torch raises of a checkpoint that does not fit into a DataError.

    Raises:
        DataError: the content is of another network or damaged.
    """
    try:
        yield
    except MsdataError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(
            f"{path} does not fit its network ({reason}); resume from another checkpoint, or use "
            "the version of mstrain that wrote it"
        ) from error


def load_model(
    run: Path | str, which: str = "best", device: torch.device | str = "cpu"
) -> tuple[RedshiftNet, TrainConfig]:
    """Loads a trained network.

        model, config = mstrain.load_model("RUN")
        logits = model({"image": images}, ebv)  # float32 (N, num_bins)

    Args:
        run: the run's folder, or a model file of `mstrain export`.
        which: "best" by validation loss, or "last".
        device: where the network goes.

    Returns:
        The network in evaluation mode without gradients, and its configuration. It takes images
        float32 (N, C, H, W) by name, as the augmenter makes them, and E(B-V) float32 (N,) in
        magnitudes.

    Raises:
        UsageError: the run has no such checkpoint.
        DataError: the checkpoint is damaged.
        StorageError: the file system refused.
    """
    path, content = read_trained(Path(run), which, device)
    fields = JsonValue(content, path, "use the version of mstrain that wrote it")
    config = TrainConfig.from_dict(fields["config"].value)
    shapes = fields["shapes"].read_as(dict[str, tuple[_Length, ...]])
    weights = fields["model" if fields["average"].value is None else "average"].value
    # The initial weights that are replaced at once must not change the caller's random state.
    with restoring(path), torch.random.fork_rng([]):
        model = RedshiftNet(shapes, config.model).to(device)
        model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    return model, config


def read_trained(
    run: Path, which: str, device: torch.device | str = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """What a run has learned, from its folder or from a model file.

    Args:
        run: the run's folder, or a model file, which holds one checkpoint.
        which: see `checkpoint_path`; "best" also means the one of a model file.
        device: where the tensors of a checkpoint go; those of a model file stay on the CPU.

    Returns:
        The file, and a checkpoint's content: "which", "config", "shapes", "model", "average",
        "prior", "progress" and "fingerprint".

    Raises:
        UsageError: the checkpoint does not exist.
        DataError: the file is damaged.
        StorageError: the file system refused.
    """
    if not is_model_file(run):
        path = checkpoint_path(run, which)
        return path, {**read_checkpoint(path, device), "which": which}
    found = read_model_file(run)
    fields: dict[str, Any] = found.fields.value
    if which not in ("best", found.fields["which"].read_as(str)):
        raise UsageError(
            f"{run} was exported from the {fields['which']} checkpoint, got --checkpoint {which}; "
            "leave the option out, or give the run's folder"
        )
    return run, {**fields, "model": found.weights, "average": None, "prior": found.prior}


def checkpoint_sha256(run: Path, which: str) -> str:
    """SHA-256 of a checkpoint's file: what a calibration of its densities was fitted on.

    Args:
        run: the run's folder, or a model file, which keeps the digest of its checkpoint.
        which: see `checkpoint_path`.

    Raises:
        UsageError: the run has no such checkpoint.
        DataError: the model file is damaged.
        StorageError: the file system refused.
    """
    if is_model_file(run):
        return read_model_file(run).fields["checkpoint_sha256"].read_as(str)
    path = checkpoint_path(run, which)
    try:
        return file_sha256(path)
    except OSError as error:
        raise storage_error("read", path, error) from error


def checkpoint_path(run: Path, which: str) -> Path:
    """The file of a checkpoint.

    Args:
        run: the run's folder.
        which: "best", "last", or the name of one, such as "step-00001234".

    Raises:
        UsageError: `which` is none of these, or there is none yet.
    """
    is_named = _STEP_NAME.fullmatch(f"{which}.pt") is not None
    if which not in ("best", "last") and not is_named:
        raise UsageError(f"{which!r} is neither 'best' nor 'last'; give one of them")
    names = {"best": _BEST, "last": ""}
    path = find_last(run) if which == "last" else run / _FOLDER / names.get(which, f"{which}.pt")
    if path is None or not path.exists():
        raise UsageError(
            f"{run} has no {which} checkpoint; give the --out of a training that has come to the "
            "end of its first epoch"
        )
    return path


def write_config(run: Path, content: Mapping[str, Any]) -> None:
    """Writes `RUN/config.json`."""
    write_whole(run / "config.json", json.dumps(content, indent=1).encode() + b"\n")


def has_config(run: Path) -> bool:
    """Whether the folder is a run's."""
    return (run / "config.json").exists()


def read_config(run: Path) -> dict[str, Any]:
    """Reads `RUN/config.json`, or what a model file has of it.

    Raises:
        UsageError: the folder is not a run.
        DataError: it is damaged.
    """
    try:
        if is_model_file(run):
            found = read_model_file(run).fields
        else:
            path = run / "config.json"
            found = read_json(path, cure="put its copy back", has_paths=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{run} is not a run: config.json not found; give the --out of a training, or a model "
            "file of 'mstrain export'"
        ) from None
    found["config"].read_as(dict[str, Any])
    for name in ("data", "fingerprint"):
        found[name].read_as(str)
    found["schema"].read_as(Schema)
    if "added_columns" in found.value:
        found["added_columns"].read_as(dict[str, str])
    content: dict[str, Any] = found.value
    return content
