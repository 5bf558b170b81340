"""How much memory is left. Reads only."""

from pathlib import Path


def available_bytes() -> int | None:
    """What programs can still take, as the kernel estimates it; None if it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
