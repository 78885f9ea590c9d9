"""Alters files of ours: values of JSON, bytes, columns of Parquet; the same for the same seed."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from msdata.dataset.index import file_sha256
from msdata.dataset.manifest import fingerprint_of

# Written into JSON as they are; the marks become what `json` cannot write.
DEEP, HUGE, TWICE = "<deep>", "<huge>", "<twice>"
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 2**64),
    *(0.5, -0.5, 1e308, float("nan"), float("inf"), HUGE, DEEP, "", "x", "0", "\0", "\ud800"),
    *("../x", "/etc/passwd", "a\nb", "x" * 3000, "<f4", "<i8", "|O", "f4,f4", ">f4", "(2,2)<f4"),
    *([], {}, [[]], [None], ["x", "x"], [2**32, 2**32], [2**31], [1] * 40, {"": 0}, [0]),
)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy that shares what is not altered: nothing writes into a file in place."""
    return shutil.copytree(folder, target, copy_function=os.link)


def replace_file(path: Path, content: bytes) -> None:
    """Gives a file other content, without touching copies that share it."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def alter_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, inserted, removed, doubled or zeroed."""
    if not content:
        return b"\0"
    at = rng.randrange(len(content))
    end = min(len(content), at + rng.choice((1, 4, 64, 4096)))
    match rng.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + rng.randbytes(rng.choice((1, 8, 300))) + content[at:]
        case 2:
            return content[:at] + content[end:]
        case 3:
            return content[:at] + bytes(end - at) + content[end:]
        case 4:
            return content + content[at:end]
        case 5:
            return rng.choice((b"", b"{}", b"[]", b"null", b"PAR1", b"\xff" * 100, content * 2))
        case _:
            altered = bytearray(content)
            for _ in range(rng.choice((1, 1, 3))):
                altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
            return bytes(altered)


def alter_json(content: bytes, rng: random.Random) -> bytes:
    """One or two values of a JSON file replaced, removed, doubled, renamed or moved."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        _alter_value(value, rng)
    text = json.dumps(value)
    text = text.replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000)
    text = text.replace(json.dumps(HUGE), "9" * rng.choice((400, 5000)))
    text = text.replace(json.dumps(TWICE), '{"a": 1, "a": 2}')
    return text.encode()


def _alter_value(root: Any, rng: random.Random) -> None:
    parent = root
    # Deeper with each toss: long lists of shards would else take nearly all that is altered.
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            return
        key = rng.choice(keys)
        if not (isinstance(parent[key], dict | list) and parent[key]) or rng.random() < 0.25:
            break
        parent = parent[key]
    match rng.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.append(parent[key])
        case 1:
            parent[str(key) + "_"] = parent.pop(key)
        case 2 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = rng.choice((parent[key] + 1, -parent[key], parent[key] * 2**20))
        case 3:
            other = rng.choice(keys)
            parent[key], parent[other] = parent[other], parent[key]
        case _:
            parent[key] = rng.choice((*EXTREMES, TWICE))


def alter_table(content: bytes, rng: random.Random) -> bytes:
    """A Parquet file written again with a column or rows altered, or its metadata."""
    table = pq.read_table(pa.BufferReader(content))
    sizes = _group_sizes(content)
    number = rng.randrange(table.num_columns)
    name, column = table.column_names[number], table.column(number).combine_chunks()
    match rng.randrange(9):
        case 0:
            table = table.remove_column(number)
        case 1:
            table = table.set_column(number, name, _retyped(column, rng))
        case 2:
            holes = [None if rng.random() < 0.3 else v for v in column.to_pylist()]
            table = table.set_column(number, name, pa.array(holes, column.type))
        case 3:
            table = table.set_column(number, name, _extreme(column, rng))
        case 4:
            table = table.slice(0, rng.randrange(table.num_rows + 1))
        case 5:
            table = table.append_column(name, column)
        case 6:
            order = list(range(table.num_rows))
            rng.shuffle(order)
            table = table.take(pa.array(order, pa.int64()))
        case 7:
            metadata = dict(table.schema.metadata or {})
            for key in metadata:
                metadata[key] = alter_bytes(metadata[key], rng)
            table = table.replace_schema_metadata(metadata or {"facts": "{}"})
        case _:
            sizes = [rng.randrange(1, 40)]
    out = io.BytesIO()
    with pq.ParquetWriter(out, table.schema) as writer:
        start = 0
        for size in (*sizes, table.num_rows):
            if start < table.num_rows:
                writer.write_table(table.slice(start, size), row_group_size=max(1, size))
            start += size
    return out.getvalue()


def _group_sizes(content: bytes) -> list[int]:
    metadata = pq.read_metadata(pa.BufferReader(content))
    return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


def _retyped(column: pa.Array, rng: random.Random) -> pa.Array:
    values = column.to_pylist()
    match rng.randrange(5):
        case 0:
            return pa.array([str(v) for v in values])
        case 1:
            return pa.array([float(len(str(v))) for v in values])
        case 2:
            return pa.array([[len(str(v))] for v in values])
        case 3:
            return pa.array([len(str(v)) for v in values], pa.uint64())
        case _:
            return pa.array([str(v).encode() + b"\xff" for v in values], pa.binary())


def _extreme(column: pa.Array, rng: random.Random) -> pa.Array:
    values = column.to_pylist()
    at = rng.randrange(len(values)) if values else 0
    for extreme in rng.sample((2**63 - 1, -1, 2**31, -(2**63), 2**32 - 1, 1e300, "", "é\n"), 8):
        try:
            return pa.array([*values[:at], extreme, *values[at + 1 :]][: len(values)], column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):
            continue
    return column


def seal(folder: Path) -> None:
    """Makes checksum and fingerprint of an altered data set right again, as a forger does."""
    path = folder / "dataset.json"
    try:
        content = json.loads(path.read_bytes())
        content["index_sha256"] = file_sha256(folder / "index.parquet")
        del content["fingerprint"]
        content["fingerprint"] = fingerprint_of(content)
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return
    replace_file(path, json.dumps(content).encode())


Alter = Callable[[bytes, random.Random], bytes]
BY_SUFFIX: dict[str, tuple[Alter, ...]] = {
    ".json": (alter_bytes, alter_json, alter_json, alter_json),
    ".parquet": (alter_bytes, alter_table, alter_table),
}


def alter_file(path: Path, rng: random.Random) -> None:
    """Alters a file in a way that fits it."""
    content = path.read_bytes()
    replace_file(path, rng.choice(BY_SUFFIX.get(path.suffix, (alter_bytes,)))(content, rng))
