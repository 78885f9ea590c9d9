"""`machine.json`: the rates that `msdata probe` measures and `msdata plan` uses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from msdata.core.checked_json import Positive, read_json
from msdata.core.files import write_whole
from msdata.errors import UsageError
from msdata.plan.timing import Machine

FORMAT = 1
MARK = b'{\n  "format": '


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields:
    """The fields that the plan uses; the others inform people."""

    IGNORES_UNKNOWN = True

    format: Literal[1]
    memory_bytes_per_s: Positive | None = None
    ssd_bytes_per_s: Positive | None = None
    network_bytes_per_s: Positive | None = None
    storage_bytes_per_s: Positive | None = None
    storage_total_bytes_per_s: Positive | None = None
    samples_per_s: Positive | None = None
    decode_bytes_per_s: Positive | None = None
    cores: Positive | None = None


RATES = tuple(field.name for field in dataclasses.fields(_Fields) if field.name != "format")


def machine_from(fields: dict[str, Any]) -> Machine:
    """The rates of a `machine.json`, or of options, as a `Machine`.

    Args:
        fields: `RATES` by name, in bytes (or samples per rank) per second; absent or None where
            unknown. Other fields are ignored.

    Returns:
        The machine.

    Raises:
        UsageError: a rate is not positive.
    """
    return Machine(**{name.removesuffix("_bytes_per_s"): fields.get(name) for name in RATES})


def load_machine(path: Path) -> dict[str, Any]:
    """Read a `machine.json`.

    Args:
        path: the file.

    Returns:
        Its fields.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged, or of another format.
        StorageError: the file system refused.
    """
    try:
        found = read_json(path, cure="run 'msdata probe' again")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} does not exist; 'msdata probe --out {path}' makes it") from error
    found.read_as(_Fields)
    fields: dict[str, Any] = found.value
    return fields


def save_machine(path: Path, fields: dict[str, Any]) -> None:
    """Write a `machine.json`, whole or not at all.

    Args:
        path: the file.
        fields: its fields; the format number is added.

    Raises:
        StorageError: the file cannot be written.
    """
    write_whole(path, json.dumps({"format": FORMAT, **fields}, indent=2).encode() + b"\n")
