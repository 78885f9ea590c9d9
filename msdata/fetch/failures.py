"""How an answer can fail: for good, perhaps only this time, or not at all yet."""

from __future__ import annotations

from msdata.errors import DataError, MsdataError, SampleError


class RefusedError(SampleError):
    """What was sent will not change: the object cannot be had. Final."""


class SpoiledError(SampleError):
    """What was sent is not what was asked for; asked again, it may be. Final after a few times."""


class UnavailableError(DataError):
    """The service did not deliver: busy, down, cut off. A later run tries again.

    Args:
        message: what happened.
        retry_after_s: how long the service asks to be left alone, if it does.
        is_busy: it is the service as a whole that asks for less, not this request that failed.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, is_busy: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_busy = is_busy


class LostError(DataError):
    """A service is down, or never was where it is looked for; the run ends."""


class StoppedError(MsdataError):
    """The run is ending; nothing is wrong with the object."""
