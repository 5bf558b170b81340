"""Output: results on stdout, messages on stderr, nothing that could steer a terminal."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

STATE_COLOURS = {
    "ready": "green", "installed": "green", "COMPLETED": "green", "starting": "yellow", "installing": "yellow",
    "waiting_env": "yellow", "draining": "yellow", "stopping": "yellow", "PROCESSING": "yellow", "unready": "red",
    "blocked": "red", "backoff": "red", "failed": "red", "conflict": "red", "FAILED": "red",
}  # fmt: skip


def clean(value: object, *, lines: bool = False) -> str:
    """Text of somebody else without control characters; `lines` keeps line ends."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() or (lines and c == "\n") else " " for c in text)


def say(message: str) -> None:
    """A message for the person at the terminal."""
    print(message, file=sys.stderr)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns; with colour on a terminal (NO_COLOR is honoured)."""
    cells = [[clean(v) for v in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(_width(r[i]) for r in [list(columns), *cells]) for i in range(len(columns))]
    for row in [[c.upper() for c in columns], *cells]:
        print("  ".join(c + " " * (w - _width(c)) for c, w in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def age(since: str | None, now: str | None) -> str:
    """The time between two RFC 3339 instants of the daemon's clock: `45s`, `3m12s`, `2h05m`, `4d03h`."""
    if not since or not now:
        return ""
    seconds = max(0, int((datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


def why(conditions: Sequence[Any] | None) -> str:
    """The first condition as `type/reason: message`."""
    if not conditions:
        return ""
    first = conditions[0]
    return f"{first.get('type', '?')}/{first.get('reason', '?')}: {first.get('message', '')}"
