"""The errors of msdata: one tree, so that a caller can catch all of them by one name.

Messages follow "X must be Y, got Z" or "cannot do X: reason; fix".
"""

from collections.abc import Iterator
from contextlib import contextmanager

# How the message of every `UnsafePickleError` ends.
NOTHING_EXECUTED = "it was refused and nothing was executed"


class MsdataError(Exception):
    """Base of all errors that msdata raises on purpose."""


class UsageError(MsdataError, ValueError):
    """The user asked for the wrong thing: an option, a path, a combination. Exit code 2."""


class DataError(MsdataError):
    """Data are truncated, corrupt or missing. Exit code 1."""


class SampleError(DataError):
    """One object or sample is unusable; the message is the reason, without the object's name."""


class UnsafePickleError(SampleError):
    """A pickle names a global other than NumPy's reconstruction functions; nothing was executed."""


class StorageError(MsdataError, OSError):
    """The file system refused: it is full, read-only or gone. Exit code 1."""


class MissingPackageError(MsdataError, ImportError):
    """An optional package is absent; the message names the extra to install."""


@contextmanager
def naming(place: object, kind: type[MsdataError] | None = None) -> Iterator[None]:
    """Puts a place before the message of a UsageError or DataError.

    Args:
        place: what the error is about, such as a file.
        kind: the error to raise instead; None keeps its type.
    """
    try:
        yield
    except (UsageError, DataError) as error:
        raise (kind or type(error))(f"{place}: {error}") from error


@contextmanager
def needing(what: str, extra: str, otherwise: str = "") -> Iterator[None]:
    """Turns the ImportError of an optional package into a `MissingPackageError`.

    Args:
        what: what needs which package, such as "HDF5 shards need h5py".
        extra: name of the extra that installs it.
        otherwise: end of the message, such as ", or leave it out with --no-figure".
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"{what}: run pip install 'msdata[{extra}]'{otherwise} ({error})"
        ) from error
