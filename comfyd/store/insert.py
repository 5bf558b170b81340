"""Many rows in few statements: each statement gives up the interpreter lock and takes it back, which costs more than
a row. OR FAIL, because otherwise SQLite copies every page before it changes it; whoever runs this takes back what an
error leaves half done."""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

_SIZES: Final = (64, 32, 16, 8, 4, 2)


class Insert:
    """into: `table (columns)`; row: `(?, ...)` for one row; tail: what follows the rows (ON CONFLICT ...)."""

    def __init__(self, into: str, row: str, tail: str = "") -> None:
        self._one = f"INSERT OR FAIL INTO {into} VALUES {row} {tail}"
        self._many = [(n, f"INSERT OR FAIL INTO {into} VALUES {', '.join([row] * n)} {tail}") for n in _SIZES]

    def __call__(self, db: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
        start, left = 0, len(rows)
        if left > 1:
            for size, text in self._many:
                while left >= size:
                    db.execute(text, list(chain.from_iterable(rows[start : start + size])))
                    start, left = start + size, left - size
        if left:
            db.execute(self._one, rows[start])
