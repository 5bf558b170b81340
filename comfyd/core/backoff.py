"""Delays between tries. Pure; the jitter is a function of what is retried, so a plan computed twice is the same."""

import hashlib

CRASH_FIRST_S, CRASH_CAP_S = 10.0, 300.0
INSTALL_FIRST_S, INSTALL_CAP_S = 30.0, 3600.0
JITTER = 0.1
SHORTAGE_RETRY_S = 2.0
"""From a start that the system refused for want of descriptors, processes or memory to the next try."""
READY_RESETS_AFTER_S = 600.0
"""A run that was ready for this long starts the curve anew (readiness, not mere life: faults.md 2.4)."""


def jittered(delay_s: float, seed: str) -> float:
    """delay_s moved by at most 10 % either way, the same for the same seed."""
    share = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") / 0xFFFFFFFF
    return delay_s * (1 - JITTER + 2 * JITTER * share)


def crash_delay_s(crashes: int, seed: str) -> float:
    """Seconds from the latest exit to the next start: 0, 10, 20, 40 ... at most 300 (+-10 %) for crash 1, 2, 3 ..."""
    if crashes <= 1:
        return 0.0
    doubled = CRASH_FIRST_S * 2.0 ** min(crashes - 2, 16)
    return jittered(min(CRASH_CAP_S, doubled), f"{seed}/{crashes}")


def install_delay_s(failures: int, seed: str) -> float:
    """Seconds from the end of a failed install to the next try: 30, 60 ... at most 3600 (+-10 %)."""
    if failures <= 0:
        return 0.0
    doubled = INSTALL_FIRST_S * 2.0 ** min(failures - 1, 16)
    return jittered(min(INSTALL_CAP_S, doubled), f"{seed}/{failures}")
