"""Reads JSON that may be damaged or hostile; checks every value once, by type, range and size.

Declare a file's content as a frozen dataclass whose annotations say what each field must be:
`int`, `float`, `str`, `bool`, `Any`, `X | None`, `Literal`, `tuple[X, ...]`, `tuple[X, Y]`,
`Mapping[str, X]`, `Annotated[int, Within(low, high)]`, another dataclass. `JsonValue.read_as`
makes one from a JSON value or raises a `DataError` that names the file, the field, the expected
kind, the value found, and the cure. An instance can be trusted. Unknown fields are refused, except
by a dataclass with `IGNORES_UNKNOWN`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
import stat
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union

from msdata.core.files import storage_error
from msdata.errors import DataError, UsageError

MAX_NBYTES = 64 << 20
# Our files nest seven levels deep; the encoder recurses.
MAX_DEPTH = 32
_MAX_SHOWN = 60
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
# Python writes a byte of a path that is not UTF-8 as U+DC80 to U+DCFF.
_NOT_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
_INT64 = 2**63

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number, or of the length of a text or list.

    Attributes:
        low: the smallest.
        high: the largest; infinity for no upper bound.
        is_open: exclude `low` itself.
    """

    low: float = 0
    high: float = math.inf
    is_open: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.is_open else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.is_open else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:,}"


Count = Annotated[int, Within(0, _INT64 - 1)]
Unsigned32 = Annotated[int, Within(0, 2**32 - 1)]
Positive = Annotated[float, Within(0, is_open=True)]


class JsonValue:
    """One value of a JSON file and its place there, for the message that refuses it.

    Args:
        value: the result of `json`.
        file: name of the file in messages.
        cure: end of messages, such as "restore it or pack again".
        parent: the value that contains this one.
        key: its name or number in `parent`.
    """

    __slots__ = ("_key", "_parent", "cure", "file", "value")

    def __init__(
        self,
        value: Any,
        file: str | Path,
        cure: str,
        parent: JsonValue | None = None,
        key: str | int = "",
    ) -> None:
        self.value = value
        self.file = file
        self.cure = cure
        self._parent = parent
        self._key = key

    @property
    def place(self) -> str:
        """Its place in the file, such as `splits.train.shards[3].nbytes`; empty for the root."""
        if self._parent is None:
            return ""
        before = self._parent.place
        if isinstance(self._key, int):
            return f"{before}[{self._key}]"
        return f"{before}.{_shown(self._key)[1:-1]}" if before else _shown(self._key)[1:-1]

    def refuse(self, must: str) -> NoReturn:
        """Raises a DataError that says what the value must be.

        Args:
            must: the required kind.
        """
        place = self.place or "its content"
        raise DataError(
            f"{self.file} is damaged: {place} must be {must}, got {_shown(self.value)}; {self.cure}"
        )

    def __getitem__(self, name: str) -> JsonValue:
        """Returns a required field of an object."""
        fields = self.fields()
        if name not in fields:
            where = f" in {self.place}" if self.place else ""
            what = f"field {name!r} is missing{where}"
            raise DataError(f"{self.file} is damaged: {what}; {self.cure}")
        return fields[name]

    def fields(self) -> dict[str, JsonValue]:
        """Returns the fields of an object, in order."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return {n: JsonValue(v, self.file, self.cure, self, n) for n, v in self.value.items()}

    def elements(self) -> list[JsonValue]:
        """Returns the elements of a list."""
        # Checkpoints hold tuples.
        if not isinstance(self.value, list | tuple):
            self.refuse("a list")
        return [JsonValue(v, self.file, self.cure, self, i) for i, v in enumerate(self.value)]

    def read_as(self, kind: type[T]) -> T:
        """Returns the value as a declared kind; see the module's docstring.

        Raises:
            DataError: the value is of another kind.
        """
        read: Callable[[JsonValue], T] = _reader(typing.cast(Any, kind))
        return read(self)


def read_json(
    path: Path, *, cure: str, max_nbytes: int = MAX_NBYTES, has_paths: bool = False
) -> JsonValue:
    """Reads a JSON file.

    Args:
        path: the file.
        cure: end of messages, such as "restore it or pack again".
        max_nbytes: the largest size.
        has_paths: the file contains paths of this machine, which need not be Unicode.

    Raises:
        FileNotFoundError: the file does not exist; `NotADirectoryError` if a part of the path is a
            file. The caller decides what this means.
        DataError: it is not a regular file, too large, or not JSON.
        StorageError: the file system refused.
    """
    try:
        with open_regular(path, cure) as file:
            content = file.read(max_nbytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise storage_error("read", path, error) from error
    if len(content) > max_nbytes:
        raise DataError(f"{path} must have at most {max_nbytes:,} bytes; {cure}")
    return parse_json(content, path, cure=cure, has_paths=has_paths)


def open_regular(path: Path, cure: str) -> io.BufferedReader:
    """Opens a file for reading; refuses files that would block, such as a FIFO.

    Raises:
        OSError: the file system refused.
        DataError: it is not a regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{path} is not a regular file; {cure}")
    return os.fdopen(fd, "rb")


def parse_json(
    content: bytes | str, file: str | Path, *, cure: str, has_paths: bool = False
) -> JsonValue:
    """Parses JSON: UTF-8, distinct names, finite numbers, nested at most `MAX_DEPTH` levels.

    Args:
        content: the text.
        file: name of the file in messages.
        cure: end of messages, such as "restore it".
        has_paths: see `read_json`.

    Raises:
        DataError: `content` breaks one of these rules.
    """
    not_text = _NOT_PATH if has_paths else _NOT_TEXT
    try:
        text = content if isinstance(content, str) else content.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        _check_tree(value, not_text if "\\u" in text else None)
    except RecursionError:
        reason = f"it is nested more than {MAX_DEPTH} levels deep"
    except ValueError as error:
        reason = str(error)
    else:
        return JsonValue(value, file, cure)
    raise DataError(f"{file} is not valid JSON ({reason}); {cure}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {_shown(twice)} stands twice in an object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _check_tree(root: Any, not_text: re.Pattern[str] | None) -> None:
    """Refuses what `json` accepts: deep nesting, infinite numbers, text that is not Unicode."""
    stack = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict):
            if not_text:
                stack += [(name, 0) for name in value]
            parts = list(value.values())
        elif isinstance(value, list):
            parts = value
        else:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("a number overflows")
            if not_text and isinstance(value, str) and not_text.search(value):
                raise ValueError("a text holds a NUL or half of a surrogate pair")
            continue
        if depth > MAX_DEPTH:
            raise RecursionError
        stack += [(part, depth + 1) for part in parts]


def _shown(value: Any) -> str:
    """Formats a value on one line, shortened if it is long."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value[: _MAX_SHOWN + 1]) if isinstance(value, str) else ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


@functools.cache
def _reader(kind: Any) -> Callable[[JsonValue], Any]:
    """Returns the function that converts a JSON value to a declared kind."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return functools.partial(_read_within, _reader(arguments[0]), arguments[1])
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is Literal:
        return functools.partial(_read_choice, arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        read = _reader(arguments[0])
        return lambda found: tuple(read(element) for element in found.elements())
    if origin is tuple:
        return functools.partial(_read_tuple, tuple(map(_reader, arguments)))
    if origin is not None and issubclass(origin, Mapping):
        read = _reader(arguments[1])
        return lambda found: {name: read(value) for name, value in found.fields().items()}
    if dataclasses.is_dataclass(kind):
        return functools.partial(_read_dataclass, kind)
    return functools.partial(_read_plain, *_PLAIN[kind])


# What each plain type is called, and which values it accepts. They stay as they are: a data set's
# fingerprint distinguishes 1 from 1.0.
_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("an integer of 64 bits", lambda v: type(v) is int and -_INT64 <= v < _INT64),
    float: ("a finite number", lambda v: type(v) in (int, float) and abs(v) <= 1e308),
    str: ("a text", lambda value: isinstance(value, str)),
    Any: ("anything", lambda value: True),
}


def _read_plain(must: str, is_one: Callable[[Any], bool], found: JsonValue) -> Any:
    if not is_one(found.value):
        found.refuse(must)
    return found.value


def _read_within(read: Callable[[JsonValue], Any], bounds: Within, found: JsonValue) -> Any:
    value = read(found)
    is_sized = isinstance(value, str | tuple | dict)
    if (len(value) if is_sized else value) not in bounds:
        found.refuse(f"of a length {bounds}" if is_sized else f"a number {bounds}")
    return value


def _union_reader(kinds: tuple[Any, ...]) -> Callable[[JsonValue], Any]:
    readers = [_reader(kind) for kind in kinds if kind is not type(None)]
    is_optional = type(None) in kinds

    def read(found: JsonValue) -> Any:
        if found.value is None and is_optional:
            return None
        for one in readers[:-1]:
            try:
                return one(found)
            except DataError:
                continue
        return readers[-1](found)

    return read


def _read_choice(choices: tuple[Any, ...], found: JsonValue) -> Any:
    # Compare types too: true equals 1.
    if not any(type(found.value) is type(c) and found.value == c for c in choices):
        found.refuse(f"one of {', '.join(map(repr, choices))}")
    return found.value


def _read_tuple(
    readers: tuple[Callable[[JsonValue], Any], ...], found: JsonValue
) -> tuple[Any, ...]:
    elements = found.elements()
    if len(elements) != len(readers):
        found.refuse(f"a list of {len(readers)}")
    return tuple(read(element) for read, element in zip(readers, elements, strict=True))


@functools.cache
def _field_readers(kind: Any) -> tuple[dict[str, Callable[[JsonValue], Any]], frozenset[str]]:
    """Returns the reader of each field of a dataclass, and the required fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [f for f in dataclasses.fields(kind) if f.init]
    needed = (
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {f.name: _reader(hints[f.name]) for f in fields}, frozenset(needed)


def _read_dataclass(kind: Any, found: JsonValue) -> Any:
    readers, needed = _field_readers(kind)
    fields = found.fields()
    unknown = sorted(fields.keys() - readers.keys())
    if unknown and not getattr(kind, "IGNORES_UNKNOWN", False):
        fields[unknown[0]].refuse("left out: this version does not know it")
    for name in sorted(needed - fields.keys()):
        found[name]
    values = {name: read(fields[name]) for name, read in readers.items() if name in fields}
    try:
        return kind(**values)
    except UsageError as error:
        place = f"{found.place}: " if found.place else ""
        raise DataError(f"{found.file} is damaged: {place}{error}; {found.cure}") from error
