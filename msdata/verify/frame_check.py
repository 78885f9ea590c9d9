"""Locates damage between the arrays of a shard: headers, JSON, padding, DALI index.

The manifest has one checksum for all these bytes. If it differs, `locate_damage` compares each
record with what the writer would have written, so that the fault names a sample.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msdata.core.checked_json import parse_json
from msdata.dataset.hdf5 import frame_ranges
from msdata.dataset.shard import metadata_text
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import (
    array_head,
    dali_index_path,
    dali_index_text,
    dali_line,
    json_distance,
    json_header,
    member_key,
    member_nbytes,
)
from msdata.errors import DataError
from msdata.schema import Schema
from msdata.verify.expected_shard import ExpectedShard

_BLOCK = 512
_END_NBYTES = 2 * _BLOCK
_RECORD = re.compile(rb'\{"sample_id":')
# The most that is searched for the JSON texts of an HDF5 shard: a hundred thousand samples.
_MAX_SEARCHED_NBYTES = 64 << 20


def locate_damage(file: ShardFile, expected: ExpectedShard) -> list[tuple[int | None, str]]:
    """Names the samples whose bytes between the arrays were altered.

    Args:
        file: the open shard, of the right size.
        expected: what manifest and index promise.

    Returns:
        (position in the shard or None, message) of each fault; empty if none can be located.
    """
    rows = expected.read_rows(None).to_pylist()
    if expected.container == "tar":
        return list(_tar_damage(file, expected, rows))
    return list(_hdf5_damage(file, expected, rows))


def _read(file: ShardFile, start: int, stop: int) -> bytes:
    buffer = bytearray(max(0, stop - start))
    file.read_into([buffer], start)
    return bytes(buffer)


def _tar_damage(
    file: ShardFile, expected: ExpectedShard, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int | None, str]]:
    arrays = expected.schema.arrays
    places, sizes, members = expected.offsets.tolist(), expected.array_nbytes, expected.members
    end = expected.info.nbytes - _END_NBYTES
    for i, (row, offsets) in enumerate(zip(rows, places, strict=True)):
        sample_id, nbytes = row["sample_id"], sizes[i].tolist()
        before = offsets[0] - len(array_head(sample_id, members[i][0], nbytes[0]))
        for a, (array, offset) in enumerate(zip(arrays, offsets, strict=True)):
            head = array_head(sample_id, members[i][a], nbytes[a])
            stop = offset - len(head)
            if _read(file, stop, offset) != head:
                yield i, f"sample {sample_id}: the header before {array.name!r} was altered"
            if any(_read(file, before, stop)):
                yield i, f"sample {sample_id}: the padding before {array.name!r} was altered"
            before = offset + nbytes[a]
        head_at = offsets[-1] + json_distance(members[i][-1], nbytes[-1])
        following = end
        if i + 1 < len(rows):
            next_id, next_nbytes = rows[i + 1]["sample_id"], int(sizes[i + 1, 0])
            next_head = array_head(next_id, members[i + 1][0], next_nbytes)
            following = places[i + 1][0] - len(next_head)
        if any(_read(file, before, head_at)):
            yield i, f"sample {sample_id}: the padding after {arrays[-1].name!r} was altered"
        if what := _json_damage(_read(file, head_at, following), row, expected.schema):
            yield i, f"sample {sample_id}: {what}"
    if any(_read(file, end, expected.info.nbytes)):
        yield None, "the blocks that end the archive were altered"


def _json_damage(member: bytes, row: Mapping[str, Any], schema: Schema) -> str:
    """Describes damage to a sample's JSON member, its header or its padding; empty if intact."""
    nbytes = member_nbytes(member[:_BLOCK])
    if nbytes is None or member[:_BLOCK] != json_header(row["sample_id"], nbytes):
        return "the header of its JSON was altered"
    text, padding = member[_BLOCK : _BLOCK + nbytes], member[_BLOCK + nbytes :]
    if any(padding):
        return "the padding after its JSON was altered"
    return "" if _agrees(text, row, schema) else "its JSON was altered"


def _hdf5_damage(
    file: ShardFile, expected: ExpectedShard, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int | None, str]]:
    # Read without the HDF5 library, which may crash on a damaged file.
    ranges = frame_ranges(expected.offsets, expected.array_nbytes, expected.info.nbytes)
    if sum(stop - start for start, stop in ranges) > _MAX_SEARCHED_NBYTES:
        return
    frame = b"".join(_read(file, start, stop) for start, stop in ranges)
    decoder = json.JSONDecoder()
    found: dict[str, bytes] = {}
    for match in _RECORD.finditer(frame):
        # Long enough for any record: the decoder stops at its end.
        text = frame[match.start() : match.start() + (1 << 16)].decode("latin1")
        try:
            content, stop = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            continue
        found[str(content["sample_id"])] = text[:stop].encode("latin1")
    for i, row in enumerate(rows):
        sample_id = row["sample_id"]
        if not _agrees(found.get(sample_id, b""), row, expected.schema):
            yield i, f"sample {sample_id}: its JSON was altered"


def _agrees(text: bytes, row: Mapping[str, Any], schema: Schema) -> bool:
    """Whether the writer would have made this JSON text from the index's row."""
    try:
        content = parse_json(text, "", cure="").value
        again = metadata_text(content)
        if again != text:
            return False
        sums = {
            f"{prefix}_{name}": sum(content[f"num_{prefix}"].get(name, ()))
            for prefix in ("filled", "nan")
            for name in schema.names
        }
        found = {**content, **sums, "missing_bands": ",".join(content["missing_bands"])}
        for name, stored in found.pop("coding", {}).items():
            is_quantized = f"step_{name}" in row
            found |= {f"{n}_{name}": stored[n] for n in ("dtype", "step") if is_quantized}
            if tuple(stored["shape"]) != schema[name].shape:
                return False
    except (DataError, ValueError, TypeError, KeyError, AttributeError):
        return False
    known = [name for name in row if name in found]
    named = {*content} - {"num_filled", "num_nan", "coding"}
    return named <= {*row} and all(_is_same(found[name], row[name]) for name in known)


def _is_same(left: Any, right: Any) -> bool:
    """Compares values, null as NaN: JSON has no NaN, and columns lack numbers of other types."""
    if isinstance(right, float) and not math.isfinite(right):
        right = None
    is_number = isinstance(left, int | float) and not isinstance(left, bool)
    return bool(left == right) or (right is None and is_number)


def check_dali_index(file: ShardFile, expected: ExpectedShard) -> str:
    """Compares the DALI index beside a tar shard with a rebuilt one.

    Args:
        file: the open shard, whose headers are intact.
        expected: what manifest and index promise.

    Returns:
        A message; empty if they agree.
    """
    path = dali_index_path(expected.path)
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return "the index that DALI reads is missing; --repair rebuilds it"
    wanted = dali_index_of(file, expected)
    if found == wanted:
        return ""
    lines, right = found.splitlines(), wanted.splitlines()
    differing = next(
        (i for i, (a, b) in enumerate(zip(lines, right, strict=False)) if a != b),
        min(len(lines), len(right)),
    )
    where = "its first line"
    if differing:
        ids = expected.sample_ids()
        where = f"sample {ids[differing - 1]}" if differing <= len(ids) else "its end"
    return f"the index that DALI reads was altered, first at {where}; --repair rebuilds it"


def dali_index_of(file: ShardFile, expected: ExpectedShard) -> bytes:
    """Rebuilds the DALI index of a tar shard from the index and the shard's headers.

    Raises:
        DataError: a header of the shard is damaged.
    """
    lines = []
    header = bytearray(_BLOCK)
    rows = zip(
        expected.sample_ids(),
        expected.members,
        expected.offsets.tolist(),
        expected.array_nbytes.tolist(),
        strict=True,
    )
    for sample_id, members, offsets, nbytes in rows:
        at = offsets[-1] + json_distance(members[-1], nbytes[-1])
        file.read_into([header], at)
        json_nbytes = member_nbytes(header)
        if json_nbytes is None:
            raise DataError(f"sample {sample_id}: the header of its JSON is damaged")
        spans = zip(offsets, nbytes, strict=True)
        lines.append(dali_line(member_key(sample_id), members, spans, (at + _BLOCK, json_nbytes)))
    return dali_index_text(lines)
