"""What all tiers share."""

import signal
from collections.abc import Iterator

import pytest

from tests.postgres import Server, running_server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run that was started in the background ignores Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One per test process; a test takes a schema of its own in it."""
    with running_server() as server:
        yield server
