"""The signals that the daemon heeds, and holding them back while it is not ready for them.

PID 1 loses a signal that it has no handler for; held back, it waits until the handler is there.
"""

import signal

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def hold_signals() -> None:
    """Hold them back from now on. `daemon.Signals.install` lets them through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def let_signals_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
