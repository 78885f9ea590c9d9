"""The errors of msdata: one tree, so that a caller can catch all of them by one name.

Each message says the fact with its values, the consequence and the cure.
"""

# How the message of every `UnsafePickleError` ends.
NOTHING_EXECUTED = "it was refused and nothing was executed"


class MsdataError(Exception):
    """Root of all errors that msdata raises on purpose."""


class UsageError(MsdataError, ValueError):
    """What was asked for makes no sense: a wrong option, path or combination. Exit code 2."""


class DataError(MsdataError):
    """The data do not hold what they promise: truncated, altered or missing. Exit code 1."""


class SampleError(DataError):
    """One object or sample is unusable; the message is the reason, without the object's name."""


class UnsafePickleError(SampleError):
    """A pickle names a global beyond NumPy's reconstruction functions; nothing was executed."""


class StorageError(MsdataError, OSError):
    """The file system refused: full, read-only, gone. Exit code 1."""


class MissingPackageError(MsdataError, ImportError):
    """An optional package is absent; the message names the extra to install."""
