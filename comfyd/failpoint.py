"""Named places at durable steps where a test may kill, fail or delay the daemon.

`COMFYD_FAILPOINT=name=kill|raise|sleep[:seconds][,name=...]`; unset (always, outside tests) a failpoint is one
falsy check. A name may carry a count, `name#3=kill`, to act at the third time it is reached.
Owns: reading that variable. Must not: be used for anything but tests.
"""

import os
import signal
import time

_ARMED: dict[str, tuple[int, str]] = {}


class FailpointError(RuntimeError):
    """Raised by a failpoint armed with `raise`."""


def arm(text: str) -> None:
    """Replace all armed failpoints by those of `text` (the format above; "" disarms)."""
    _ARMED.clear()
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, action = part.partition("=")
        name, _, nth = name.partition("#")
        if action.partition(":")[0] not in {"kill", "raise", "sleep"}:
            raise ValueError(f"COMFYD_FAILPOINT: {part!r} is not name=kill|raise|sleep[:seconds]")
        _ARMED[name] = (int(nth or 1), action)


def failpoint(name: str) -> None:
    """Mark a durable step. Does nothing unless `name` is armed."""
    if _ARMED and name in _ARMED:
        _act(name)


def _act(name: str) -> None:
    left, action = _ARMED[name]
    if left > 1:
        _ARMED[name] = (left - 1, action)
        return
    del _ARMED[name]
    verb, _, seconds = action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "raise":
        raise FailpointError(name)
    time.sleep(float(seconds or 1))


arm(os.environ.get("COMFYD_FAILPOINT", ""))
