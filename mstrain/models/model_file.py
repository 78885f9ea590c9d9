"""A trained network as one file, MODEL.msz: weights and all that a prediction needs, no pickles.

It is a ZIP archive, stored and not compressed, that ends with the SHA-256 of all bytes before it:

model.json             configuration, schema, shapes, bins, origin, license and citation
weights.safetensors    weights, counts and log weights of the prior (safetensors' format)
statistics.json        statistics of the training's pixels, as `msdata stats` writes them
calibration*.json      what recalibrates densities; absent where the run has none
ood.msz                what flags unusual objects, an archive of the same kind; likewise

The digest tells damage, not the author: whoever alters a file can compute it again. Nothing in
a file is executed or unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from msdata.core.checked_json import JsonValue, open_regular, parse_json
from msdata.core.files import storage_error, write_whole
from msdata.errors import DataError, UsageError, needing

SUFFIX = ".msz"
FORMAT_VERSION = 1
# The end of every file: the archive's comment, then 64 hexadecimal digits.
MARK = b"mstrain model sha256:"
_DIGITS = 64
JSON_NAME, WEIGHTS_NAME = "model.json", "weights.safetensors"
# Files of a run's folder that go along, and all that an archive may hold.
OOD_NAME = "ood.msz"
COMPANIONS = ("statistics.json", "calibration*.json", OOD_NAME)
_NAME = re.compile(
    r"model\.json|weights\.safetensors|statistics\.json|calibration[\w.-]{0,99}\.json|ood\.msz"
)
# The largest that is read into memory: far above a network's.
_MAX_NBYTES = 16 << 30
_UTF8_FLAG = 0x800
_CURE = "copy it again, or run 'mstrain export' again"
_WEIGHT, _PRIOR = "model/", "prior/"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFile:
    """The checked content of a model file.

    Attributes:
        path: the file.
        sha256: its digest, which names this very model.
        fields: content of `model.json`.
        weights: the network's tensors by name.
        prior: tensors of the prior, see `TrainedPrior.to_state`; None where the run kept none.
        companions: content of the other files by name.
    """

    path: Path
    sha256: str
    fields: JsonValue
    weights: Mapping[str, Tensor]
    prior: Mapping[str, Tensor | None] | None
    companions: Mapping[str, bytes]


def is_model_file(path: Path) -> bool:
    """Whether a path is a model file's and not a run's folder."""
    return path.is_file() or (path.suffix == SUFFIX and not path.is_dir())


def results_folder(out: Path | None, run: Path) -> Path:
    """The folder that results of a run go to: the run's own unless another is named.

    Raises:
        UsageError: the run is a model file, and no folder is named.
    """
    if out is None and is_model_file(run):
        raise UsageError(f"{run} is a file: give a folder for the results with --out DIR")
    return run if out is None else out


def opened_run(run: Path) -> Path | ModelFile:
    """What `companion` takes, to read several files of a run: a model file is read once."""
    return read_model_file(run) if is_model_file(run) else run


def companion(run: Path | ModelFile, name: str) -> JsonValue | None:
    """A JSON file that a run keeps beside its checkpoints, in its folder or its model file.

    Args:
        run: the run's folder, or a model file; or from `opened_run`.
        name: the file's name, such as "statistics.json".

    Returns:
        Its content; None where the run has no such file.

    Raises:
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    content = _companion_bytes(run, name)
    if content is None:
        return None
    path, is_file = (run.path, True) if isinstance(run, ModelFile) else (run, is_model_file(run))
    cure = _CURE if is_file else "restore it"
    return parse_json(content, f"{path}/{name}", cure=cure, has_paths=True)


def companion_file(run: Path | ModelFile, name: str, cure: str) -> ModelFile | None:
    """As `companion`, for one that is an archive as model files are; `cure` ends messages."""
    content = _companion_bytes(run, name)
    path = run.path if isinstance(run, ModelFile) else run
    return None if content is None else _read(path / name, content, cure)


def _companion_bytes(run: Path | ModelFile, name: str) -> bytes | None:
    found = opened_run(run) if isinstance(run, Path) else run
    if isinstance(found, ModelFile):
        return found.companions.get(name)
    try:
        with open_regular(found / name, "restore it") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error("read", found / name, error) from error


def write_model_file(
    path: Path,
    fields: bytes,
    weights: Mapping[str, Tensor],
    prior: Mapping[str, Tensor | None],
    companions: Mapping[str, bytes],
) -> str:
    """Writes a model file, whole or not at all; the same content gives the same bytes.

    Args:
        path: the file.
        fields: `model.json`.
        weights: the network's tensors by name.
        prior: tensors of the prior; empty where none is known.
        companions: further files by name.

    Returns:
        Its SHA-256.

    Raises:
        MissingPackageError: safetensors is not installed.
        StorageError: the file system refused.
    """
    with needing("model files need safetensors", "train"):
        from safetensors.torch import save

    named = {_WEIGHT + name: tensor for name, tensor in weights.items()}
    named |= {_PRIOR + name: tensor for name, tensor in prior.items() if tensor is not None}
    # Tensors that share memory are refused there.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        content = {JSON_NAME: fields, WEIGHTS_NAME: save(tensors), **companions}
        for name, member in content.items():
            # The time of now would make other bytes of the same model.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), member)
        archive.comment = MARK + b"0" * _DIGITS
    body = file.getvalue()[:-_DIGITS]
    digest = hashlib.sha256(body).hexdigest()
    write_whole(path, body + digest.encode())
    return digest


def read_model_file(path: Path) -> ModelFile:
    """Reads a model file; nothing in it is executed.

    Raises:
        UsageError: the file does not exist, is none, or of a later version.
        DataError: it is damaged, or holds something that does not belong there.
        StorageError: the file system refused.
        MissingPackageError: safetensors is not installed.
    """
    return _read(path, _bytes_of(path), _CURE)


def _read(path: Path, content: bytes, cure: str) -> ModelFile:
    _check_bytes(path, content, cure)
    members = _members(path, content, cure)
    fields = parse_json(members.pop(JSON_NAME), f"{path}/{JSON_NAME}", cure=cure, has_paths=True)
    version = fields["format_version"].read_as(int)
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {version}, this mstrain reads up to {FORMAT_VERSION}; "
            "update it"
        )
    tensors = _tensors(members.pop(WEIGHTS_NAME), path, cure)
    prior = _named(tensors, _PRIOR)
    return ModelFile(
        path=path,
        sha256=content[-_DIGITS:].decode(),
        fields=fields,
        weights=_named(tensors, _WEIGHT),
        prior={"log_weights": None, **prior} if prior else None,
        companions=members,
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads plain weights by name from a `.safetensors` file.

    Raises:
        DataError: it is damaged, or larger than any network.
        StorageError: the file system refused.
        MissingPackageError: safetensors is not installed.
    """
    cure = "copy it again"
    try:
        with open_regular(path, "give a file of weights") as file:
            if os.fstat(file.fileno()).st_size > _MAX_NBYTES:
                raise DataError(f"{path} must be at most {_MAX_NBYTES >> 30} GiB; {cure}")
            content = file.read()
    except OSError as error:
        raise storage_error("read", path, error) from error
    return _tensors(content, path, cure)


def _tensors(content: bytes, path: Path, cure: str) -> dict[str, Tensor]:
    with needing("model files need safetensors", "train"):
        from safetensors import SafetensorError
        from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, TypeError, RuntimeError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"the weights of {path} cannot be read ({reason}); {cure}") from error
    return found


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _bytes_of(path: Path) -> bytes:
    try:
        with open_regular(path, "give a model file or a run's folder") as file:
            return file.read() if os.fstat(file.fileno()).st_size <= _MAX_NBYTES else b""
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise storage_error("read", path, error) from error


def _check_bytes(path: Path, content: bytes, cure: str) -> None:
    """Raises unless the digest at a file's end is right."""
    if content[:2] != b"PK":
        raise UsageError(
            f"{path} is not a model file of mstrain; give one that 'mstrain export' wrote, or a "
            "run's folder"
        )
    if content[-_DIGITS - len(MARK) : -_DIGITS] != MARK:
        raise DataError(f"{path} is truncated or not a model file of mstrain; {cure}")
    found = hashlib.sha256(memoryview(content)[:-_DIGITS]).hexdigest()
    if found.encode() != content[-_DIGITS:]:
        expected = ascii(content[-_DIGITS:][:12].decode("latin-1"))[1:-1]
        raise DataError(
            f"{path} is corrupt: SHA-256 {found[:12]}..., expected {expected}...; {cure}"
        )


def _members(path: Path, content: bytes, cure: str) -> dict[str, bytes]:
    """The archive's files by name, each known, there once, and no larger than the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            for entry in entries:
                is_plain = entry.compress_type == zipfile.ZIP_STORED
                is_plain &= not entry.flag_bits & ~_UTF8_FLAG
                if not (_NAME.fullmatch(entry.filename) and is_plain):
                    raise DataError(
                        f"{path} holds {entry.filename[:60]!a}, which does not belong into a "
                        f"model file, or not in this form; {cure}"
                    )
            # Entries that lie over each other would read as more than there is.
            is_bomb = sum(entry.file_size for entry in entries) > len(content)
            missing = {JSON_NAME, WEIGHTS_NAME} - set(names)
            if is_bomb or missing or len(set(names)) != len(names):
                reason = f"{min(missing)} is missing" if missing else "its entries overlap"
                raise DataError(f"{path} is damaged: {reason}; {cure}")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged: {error}; {cure}") from error
