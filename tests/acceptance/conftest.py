"""What all tests of commands need: that Ctrl-C reaches the processes they start."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def heed_ctrl_c() -> None:
    """A shell has what it starts in the background ignore SIGINT, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
