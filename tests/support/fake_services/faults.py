"""Which answers of the stand-in services are faulty, and how: a pure function of a seed.

Three kinds. A passing fault spoils single answers and is gone after a few attempts. A lasting fault
belongs to an object and never goes away. An oddity looks like a fault and is none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from msdata.errors import UsageError

PASSING = (
    *("429", "429-date", "502", "503", "504"),
    *("hang", "reset", "truncated", "empty", "busy-page"),
)
LASTING = (
    *("outside", "missing_band", "split_projections", "two_stacks", "flagged", "wrong_filter"),
    *(
        "no_exposure",
        "nan_band",
        "empty_fits",
        "no_such_layer",
        "one_band",
        "clamped",
        "off_center",
        "no_unwise",
    ),
)
ODDITIES = (
    *("several_cells", "split_bands", "ragged_cells", "nan_cell"),
    *("nan_core", "no_galex", "swapped_bands"),
)


def position_key(ra: float, dec: float) -> str:
    """The name of a position in a plan of faults."""
    return f"{ra % 360:.5f} {dec:.5f}"


def _draw(*words: object) -> float:
    digest = hashlib.blake2b("|".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") * 2.0**-64


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """How often which faults strike.

    Attributes:
        seed: what they are drawn with.
        passing_fraction: share of answers that are spoiled for a while.
        lasting_fraction: share of objects with a fault that stays.
        odd_fraction: share of objects that are good but odd.
        passing: the kinds to draw passing faults from.
        lasting: the kinds to draw lasting faults from.
        max_in_a_row: attempts after which a passing fault is gone.
        hang_s: how long an answer hangs before the connection is closed.
        retry_after_s: what 429 and 503 ask for.
    """

    seed: int = 0
    passing_fraction: float = 0.0
    lasting_fraction: float = 0.0
    odd_fraction: float = 0.0
    passing: tuple[str, ...] = PASSING
    lasting: tuple[str, ...] = LASTING
    max_in_a_row: int = 3
    hang_s: float = 60.0
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        fractions = (self.passing_fraction, self.lasting_fraction, self.odd_fraction)
        if not all(0 <= f <= 1 for f in fractions) or sum(fractions[1:]) > 1:
            raise UsageError(f"fractions of faults must be 0 to 1, got {fractions}")
        for name, known in (("passing", PASSING), ("lasting", (*LASTING, *ODDITIES))):
            if unknown := set(getattr(self, name)) - set(known):
                raise UsageError(f"no {name} fault {sorted(unknown)}; there are {', '.join(known)}")

    def passing_fault(self, request: str, attempt: int) -> str | None:
        """The fault of one answer.

        Args:
            request: what was asked for.
            attempt: how often it was asked for before.
        """
        if attempt >= self.max_in_a_row:
            return None
        if _draw(self.seed, "passing", request, attempt) >= self.passing_fraction:
            return None
        return self.passing[int(_draw(self.seed, "kind", request, attempt) * len(self.passing))]

    def lasting_fault(self, ra: float, dec: float) -> str | None:
        """What is wrong, or odd, with an object; None where it is as it should be."""
        key = position_key(ra, dec)
        draw = _draw(self.seed, "object", key)
        kinds: tuple[str, ...] = ()
        if draw < self.lasting_fraction:
            kinds = self.lasting
        elif draw < self.lasting_fraction + self.odd_fraction:
            kinds = ODDITIES
        return kinds[int(_draw(self.seed, "which", key) * len(kinds))] if kinds else None

    def choice(self, ra: float, dec: float, count: int) -> int:
        """A number below `count` that belongs to an object, such as which band is missing."""
        return int(_draw(self.seed, "choice", position_key(ra, dec)) * count)
