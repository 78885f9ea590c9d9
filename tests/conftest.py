"""Settings of all tests."""

from hypothesis import settings

# Examples are timed by the wall clock: beside other work a deadline would fail sound tests.
settings.register_profile("msdata", deadline=None)
settings.load_profile("msdata")
