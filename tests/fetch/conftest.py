"""What the tests of `msdata fetch` share."""

from __future__ import annotations

from collections.abc import Iterator

import fetching
import pytest
from fake_services.server import StandIns


@pytest.fixture(scope="module")
def running() -> Iterator[StandIns]:
    """Stand-ins of the services without faults."""
    with fetching.standins() as found:
        yield found
