"""The one reader of JSON: what is declared comes back, all else is a sentence with its place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from msdata.core.checked_json import (
    MAX_DEPTH,
    Count,
    JsonValue,
    Positive,
    Within,
    parse_json,
    read_json,
)
from msdata.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a file."""

    name: Annotated[str, Within(1, 5)]
    size: Count = 0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A file."""

    kind: Literal["a", "b", 1]
    parts: tuple[Part, ...]
    pair: tuple[int, str] = (0, "")
    scale: Positive | None = None
    by_name: Mapping[str, float] | None = None
    is_new: bool = False
    rest: Any = None

    def __post_init__(self) -> None:
        if len(self.parts) > 3:
            raise UsageError("at most three parts")


SOUND: dict[str, Any] = {"kind": "a", "parts": [{"name": "x", "size": 3}]}


def read(content: Any, kind: Any = Whole) -> Any:
    return parse_json(json.dumps(content), "f.json", cure="restore it").read_as(kind)


def test_what_is_declared_comes_back_with_its_defaults() -> None:
    assert read(SOUND) == Whole(kind="a", parts=(Part(name="x", size=3),))
    found = read(
        {
            **SOUND,
            "kind": 1,
            "pair": [7, "y"],
            "scale": 2,
            "by_name": {"a": 1, "b": 0.5},
            "is_new": True,
            "rest": {"any": [None]},
        }
    )
    assert (found.pair, found.scale, found.by_name) == ((7, "y"), 2, {"a": 1, "b": 0.5})
    assert found.is_new
    assert found.rest == {"any": [None]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "c"}, "kind must be one of 'a', 'b', 1, got 'c'"),
        ({"kind": True}, "kind must be one of 'a', 'b', 1, got True"),
        ({"parts": {}}, "parts must be a list, got an object of 0"),
        ({"parts": [{"name": 1}]}, r"parts\[0\].name must be a text, got 1"),
        ({"parts": [{"name": ""}]}, r"parts\[0\].name must be of a length at least 1 and at most"),
        ({"parts": [{"size": 1}]}, r"field 'name' is missing in parts\[0\]"),
        ({"parts": [{"name": "x", "size": -1}]}, r"parts\[0\].size must be a number at least 0"),
        ({"parts": [{"name": "x", "size": 2**63}]}, r"parts\[0\].size must be an integer of 64"),
        ({"parts": [{"name": "x", "size": True}]}, r"parts\[0\].size must be an integer of 64"),
        ({"parts": [{"name": "x", "size": 1.0}]}, r"parts\[0\].size must be an integer .* got 1.0"),
        ({"parts": [{"name": "x"}] * 4}, "at most three parts; restore it"),
        ({"pair": [1]}, "pair must be a list of 2, got a list of 1"),
        ({"scale": 0}, "scale must be a number above 0, got 0"),
        ({"scale": "1"}, "scale must be a finite number, got '1'"),
        ({"scale": 10**400}, "scale must be a finite number, got a number of 1329 bits"),
        ({"by_name": {"a\x1b[31m": None}}, r"by_name.a\\x1b\[31m must be a finite number"),
        ({"is_new": 1}, "is_new must be true or false, got 1"),
        ({"colour": 1}, "colour must be left out: this version does not know it"),
    ],
)
def test_anything_else_is_said_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"f.json is damaged: .*{says}") as caught:
        read({**SOUND, **change})
    assert str(caught.value).endswith("; restore it")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "Expecting property name"),
        (b"\xff{}", "codec can't decode"),
        (b"[" * 100_000, "nested more than 32 levels deep"),
        (b"[" * 900 + b"]" * 900, "nested more than 32 levels deep"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": [1e400]}', "a number overflows"),
        (b'{"a": 1, "a": 2}', "the name 'a' stands twice"),
        (b'{"a": "\\u0000"}', "a text holds a NUL"),
        (b'{"\\ud800": 1}', "half of a surrogate pair"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_not_json_is_refused_in_one_sentence(text: bytes, says: str) -> None:
    wanted = f"f.json is not valid JSON .*{says}.*; restore it"
    with pytest.raises(DataError, match=wanted) as caught:
        parse_json(text, "f.json", cure="restore it")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_nesting_up_to_the_limit_and_pairs_of_surrogates_are_json() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(text, "f", cure="").value
    assert parse_json('"\\ud83d\\ude00"', "f", cure="").value == "\N{GRINNING FACE}"


def test_paths_may_hold_bytes_that_are_not_unicode() -> None:
    with pytest.raises(DataError, match="surrogate"):
        parse_json('"/data/\\udcff"', "f", cure="")
    assert parse_json('"/data/\\udcff"', "f", cure="", has_paths=True).value == "/data/\udcff"
    with pytest.raises(DataError, match="surrogate"):
        parse_json('"/data/\\ud800"', "f", cure="", has_paths=True)


def test_a_file_that_cannot_be_one_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/null")):
        with pytest.raises(DataError, match="is not a regular file; restore it"):
            read_json(path, cure="restore it")
    (tmp_path / "large").write_bytes(b" " * 101)
    with pytest.raises(DataError, match="must have at most 100 bytes"):
        read_json(tmp_path / "large", cure="restore it", max_nbytes=100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", cure="restore it")


def test_parts_know_their_place() -> None:
    root = JsonValue({"a": [{"b": 1}]}, "f", "cure")
    assert root["a"].elements()[0]["b"].place == "a[0].b"
    assert [p.place for p in root.fields().values()] == ["a"]
