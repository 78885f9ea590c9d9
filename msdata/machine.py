"""`machine.json`: what `msdata probe` measured and `msdata plan` reckons with."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from msdata.errors import DataError, StorageError, UsageError
from msdata.plan.timing import Machine

FORMAT = 1
MARK = b'{\n  "format": '
RATES = (
    "memory_bytes_per_s",
    "ssd_bytes_per_s",
    "network_bytes_per_s",
    "storage_bytes_per_s",
    "storage_total_bytes_per_s",
    "samples_per_s",
)


def machine_from(fields: dict[str, Any]) -> Machine:
    """The rates of a `machine.json`, or of options, as a `Machine`.

    Args:
        fields: `RATES` by name, in bytes (or samples of a rank) per second; absent or None where
            unknown. Other fields are ignored.

    Returns:
        The machine.

    Raises:
        UsageError: a rate that is not positive.
    """
    return Machine(**{name.removesuffix("_bytes_per_s"): fields.get(name) for name in RATES})


def load_machine(path: Path) -> dict[str, Any]:
    """Read a `machine.json`.

    Args:
        path: the file.

    Returns:
        Its fields.

    Raises:
        UsageError: there is no such file.
        DataError: it is no machine file, or one of another format.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; 'msdata probe --out {path}' makes it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no machine file ({error}); run 'msdata probe' anew") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}; run 'msdata probe' of this version")
    return fields


def save_machine(path: Path, fields: dict[str, Any]) -> None:
    """Write a `machine.json` so that at any moment the old or the new one is there, whole.

    Args:
        path: the file.
        fields: its fields; the format number is added.

    Raises:
        StorageError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, **fields}, indent=2) + "\n"
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp keeps others out; a machine's rates are for the whole group.
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error}); choose another place by --out"
        ) from error


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
