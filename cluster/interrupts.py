"""How a command is stopped. Apart from the Ray session, so that the command line imports nothing for it."""

from __future__ import annotations

import signal
import threading


def interrupt_on_sigterm() -> None:
    """Make SIGTERM what Ctrl-C is, a KeyboardInterrupt in the main thread: clean-up runs, and the exit code is 130."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
