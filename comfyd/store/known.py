"""What the one writer knows without asking the database again. Runs on the writer thread.

Owns: nothing that is not in the database as well; after a rollback it is forgotten as a whole and asked for anew.
"""

import math
from typing import Final

Lane = tuple[str | None, str]
"""(user_id, priority): tasks that stand one behind the other."""
MAX_LANES: Final = 10_000


class Known:
    """seq: number of the newest task, None if not known. expiry_mono: no lease runs out before it.

    paused: environments; queued: how many tasks are PENDING; None if not known.
    """

    def __init__(self) -> None:
        self.seq: int | None = None
        self.expiry_mono = -math.inf
        self.paused: frozenset[str] | None = None
        self.queued: int | None = None
        self._tops: dict[Lane, int] = {}

    def forget(self) -> None:
        self.seq = None
        self.expiry_mono = -math.inf
        self.paused = None
        self.queued = None
        self._tops.clear()

    def top(self, lane: Lane) -> int | None:
        """Highest rank of the lane's unfinished tasks, 0 if it has none. None: not known."""
        return self._tops.get(lane)

    def put_top(self, lane: Lane, rank: int) -> None:
        if len(self._tops) >= MAX_LANES:
            self._tops.clear()
        self._tops[lane] = rank

    def moved(self, lane: Lane, rank: int) -> None:
        """A task of that rank was finished or is unfinished again."""
        if rank >= self._tops.get(lane, rank + 1):
            del self._tops[lane]

    def leased(self, until_mono: float) -> None:
        self.expiry_mono = min(self.expiry_mono, until_mono)
