"""How long to wait before asking again."""

from __future__ import annotations

import math
import random
from email.utils import parsedate_to_datetime

# Beyond it the exponent would overflow long after the cap has set in.
_MAX_DOUBLINGS = 30


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a `Retry-After` header asks for.

    Args:
        value: the header: seconds, or an HTTP date; None where it was not sent.
        now_s: the time, seconds since 1970.

    Returns:
        Seconds from now, not below 0; None where there is nothing to understand.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Digits without end would become infinity, which no one can wait for.
        return float(text) if len(text) < 10 else math.inf
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def delay_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds before the next attempt: doubled each time, and spread, lest all come back at once.

    Args:
        attempt: failed ones before this delay, from 1.
        first_s: the mean after the first.
        longest_s: never more than this.
    """
    grown = first_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS)
    return min(longest_s, grown * random.uniform(0.5, 1.5))
