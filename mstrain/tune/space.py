"""What a search varies: settings with ranges or choices, read from words.

optim.learning_rate=log:1e-5..3e-3   batch_size=64,128,256   model.hidden=128..2048
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msdata.errors import UsageError
from mstrain.config import TrainConfig
from mstrain.overrides import CHANGEABLE, apply_overrides, read_setting

LOSS, CRPS = "loss", "crps"
OBJECTIVES = (LOSS, CRPS)
_RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>.+)")
_LOG = "log:"
# What cannot be searched, and why.
_REFUSED = {
    "epochs": "is what every trial may spend, so trials must share it; give epochs=N",
    **dict.fromkeys(
        [f"model.{n}" for n in ("target", "target_kind", "target_min", "target_max", "classes")]
        + ["model.z_max"],
        "decides which objects are validated on, so trials could not be compared; give one value",
    ),
    **dict.fromkeys(
        [f"data.{n}" for n in ("fraction", "label_noise", "fold", "without")],
        "decides which objects are trained on; give one value, or compare with 'mstrain study'",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting that is searched.

    Attributes:
        name: its full name.
        low: lower end of a range, included; None for choices.
        high: upper end, included.
        is_log: draw evenly in the logarithm.
        choices: the values; empty for a range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether a range has integers only."""
        return isinstance(self.low, int)

    def ends(self) -> tuple[Any, ...]:
        """The values that stand in its words: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(setting_text, self.choices))
        return f"{_LOG if self.is_log else ''}{self.low!r}..{self.high!r}"


def setting_text(value: Any) -> str:
    """A plain value as `key=value` takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def setting_words(values: dict[str, Any]) -> list[str]:
    """Settings as `key=value`."""
    return [f"{name}={setting_text(value)}" for name, value in values.items()]


def parse_space(
    words: Sequence[str], base: TrainConfig, given: Sequence[str], objective: str
) -> tuple[Dimension, ...]:
    """Reads what is searched, and holds every end and choice against the recipe.

    Args:
        words: `NAME=log:LOW..HIGH`, `NAME=LOW..HIGH` or `NAME=A,B,C` each.
        base: settings of all trials.
        given: the caller's own `key=value`, which cannot be searched as well.
        objective: what trials are compared by.

    Raises:
        UsageError: a word cannot be read, or names what cannot be searched.
    """
    if not words:
        raise UsageError(
            "--search must name at least one setting, such as optim.learning_rate=log:1e-5..3e-3"
        )
    fixed = {read_setting(*_parted(word))[0] for word in given}
    found: dict[str, Dimension] = {}
    for word in words:
        dimension = _dimension(word)
        _check_searchable(dimension.name, base, objective)
        if dimension.name in found or dimension.name in fixed:
            also = "searched twice" if dimension.name in found else "searched and given"
            raise UsageError(f"{dimension.name} is {also}; say one of the two")
        for value in dimension.ends():
            apply_overrides(base, setting_words({dimension.name: value}))
        found[dimension.name] = dimension
    return tuple(found.values())


def _parted(word: str) -> tuple[str, str]:
    key, _, text = word.partition("=")
    return key.strip(), text.strip()


def _dimension(word: str) -> Dimension:
    key, text = _parted(word)
    if not key or not text:
        raise UsageError(
            f"--search must be NAME=LOW..HIGH, NAME=log:LOW..HIGH or NAME=A,B,C, got {word!r}"
        )
    is_log = text.startswith(_LOG)
    text = text.removeprefix(_LOG)
    parted = _RANGE.fullmatch(text)
    if parted is None:
        return _choices(word, key, text, is_log=is_log)
    (name, low), (_, high) = (read_setting(key, parted[end]) for end in ("low", "high"))
    if not all(type(end) in (int, float) for end in (low, high)):
        raise UsageError(f"--search {name} must be a list such as A,B,C, got {word!r}")
    if not low < high:
        raise UsageError(f"--search {name} must have its low end below the high one, got {word!r}")
    if is_log and low <= 0:
        raise UsageError(f"--search {name} must have a low end > 0 for log:, got {word!r}")
    return Dimension(name=name, low=low, high=high, is_log=is_log)


def _choices(word: str, key: str, text: str, *, is_log: bool) -> Dimension:
    read = [read_setting(key, part.strip()) for part in text.split(",")]
    name, values = read[0][0], tuple(value for _, value in read)
    if is_log:
        raise UsageError(f"--search {name} must be a range after log:, got {word!r}")
    if len(values) < 2:
        raise UsageError(
            f"--search {name} must have a range or at least two values, got {word!r}; a setting of "
            "all trials stands before --search"
        )
    if len(set(values)) < len(values):
        raise UsageError(f"--search {name} must have different values, got {word!r}")
    return Dimension(name=name, choices=values)


def _check_searchable(name: str, base: TrainConfig, objective: str) -> None:
    """Raises UsageError where trials that differ in a setting could not be compared by it."""
    if name.startswith(CHANGEABLE):
        raise UsageError(f"cannot search {name}: it changes results by rounding at most; give it")
    if name in _REFUSED:
        raise UsageError(f"cannot search {name}: it {_REFUSED[name]}")
    if name == "model.num_bins" and objective == LOSS:
        raise UsageError(
            "cannot search model.num_bins by the loss, which falls with fewer bins; give "
            "--objective crps"
        )
    if name == "batch_size" and base.batch_per_gpu is not None:
        raise UsageError(
            f"cannot search batch_size: batch_per_gpu={base.batch_per_gpu} of the recipe decides "
            "it; give batch_per_gpu=none, or search batch_per_gpu"
        )
