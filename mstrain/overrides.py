"""Settings given as `key=value`: found, read by the type of what they replace, checked."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from msdata.core.checked_json import parse_json
from msdata.errors import DataError, UsageError
from mstrain.config import TrainConfig

_NONE = ("none", "null", "auto")
# What else the recipe `auto` chooses depends on them.
TARGET_FIELDS = ("target", "target_kind", "target_min", "target_max", "classes")
# What may differ between a run and its continuation: it changes results by rounding at most.
CHANGEABLE = (
    *("log.", "checkpoint.", "data.cache", "data.threads", "data.prefetch", "compute.device"),
    *("compute.compile", "compute.threads", "compute.channels_last"),
)
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its full name, such as ("optim.learning_rate", 3e-4).

    Args:
        config: a frozen dataclass, of dataclasses and plain values.
        prefix: put before the names.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def changed_settings(before: TrainConfig, now: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ by more than rounding: name, former value, new one."""
    former = dict(settings_of(before))
    for name, value in settings_of(now):
        if former[name] != value and not name.startswith(CHANGEABLE):
            yield name, former[name], value


def read_setting(key: str, text: str) -> tuple[str, Any]:
    """A setting's full name, and its value as text would set it.

    Raises:
        UsageError: the setting is unknown, or the value is of another type.
    """
    name = full_name(key)
    kind: Any = TrainConfig
    for part in name.split("."):
        kind = typing.get_type_hints(kind)[part]
    return name, _read(name, text, kind)


def full_name(key: str) -> str:
    """The full name of a setting, such as "optim.learning_rate" for its last part.

    Raises:
        UsageError: it is unknown, or may mean several.
    """
    names = [name for name, _ in settings_of(TrainConfig()) if name != "recipe"]
    if key in names:
        return key
    ending = [name for name in names if name.rpartition(".")[2] == key]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UsageError(f"{key} may mean {' or '.join(ending)}; give the full name")
    close = difflib.get_close_matches(key, [*names, *(n.rpartition(".")[2] for n in names)], n=1)
    hint = f"did you mean {close[0]}?" if close else "'mstrain train --settings' lists them"
    raise UsageError(f"unknown setting {key!r}; {hint}")


def apply_overrides(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """The configuration with some settings replaced.

    Args:
        config: what is replaced in.
        overrides: `key=value`; the key is a setting's full name, or its last part where no other
            setting ends with it. "none" or "auto" where a setting may be unset.

    Returns:
        The new configuration, checked.

    Raises:
        UsageError: a setting is unknown, or its value does not fit.
    """
    # By section, "" for the settings of none, and name.
    changes: dict[str, dict[str, Any]] = {"": {}}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"a setting must be key=value, such as epochs=10, got {override!r}")
        name, value = read_setting(key.strip(), text.strip())
        section, _, last = name.rpartition(".")
        if last in changes.setdefault(section, {}):
            raise UsageError(f"{name} is given twice; give it once")
        changes[section][last] = value
    own = changes.pop("")
    sections = {name: replace(getattr(config, name), **new) for name, new in changes.items()}
    return replace(config, **own, **sections)


def target_given(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides say of the target, by field of `ModelConfig`; others are not looked at.

    Raises:
        UsageError: a setting is unknown, or such a value cannot be read.
    """
    found = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, _, last = full_name(key.strip()).rpartition(".") if equals else ("", "", "")
        if section == "model" and last in TARGET_FIELDS:
            found[last] = read_setting(key.strip(), text.strip())[1]
    return found


def _read(name: str, text: str, hint: Any) -> Any:
    """A value of the type that the setting has."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    if type(None) in kinds and text.lower() in _NONE:
        return None
    kind = next(k for k in kinds if k is not type(None))
    try:
        return _convert(text, kind)
    except (ValueError, DataError):
        raise UsageError(f"{name}={text} cannot be read{_cure(name, kind, kinds)}") from None


def _cure(name: str, kind: Any, kinds: tuple[Any, ...]) -> str:
    """What a value should have been, in words that end a sentence."""
    if kind not in (bool, int, float):
        example = '["galex"]' if typing.get_origin(kind) is tuple else '{"panstarrs": 120}'
        return f"; write JSON, in quotes for the shell: '{name}={example}'"
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    return f" as {wanted.replace('NoneType', 'none')}; correct the value"


def _convert(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal or kind is str:
        return text
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if kind is int:
        # 1e4 is a number of samples, too.
        number = float(text)
        if not number.is_integer():
            raise ValueError(text)
        return int(number)
    if kind is float:
        return float(text)
    return parse_json(text, "the value", cure="write JSON").value
