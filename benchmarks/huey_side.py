"""huey, measured by its own interpreter: FOLDER SECONDS TASKS. Prints measure -> per second as JSON."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import SqliteHuey  # type: ignore[import-not-found]

FOLDER, SECONDS, TASKS = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
BODY = json.dumps({str(n): {"class_type": "ImageScaleBy", "inputs": {"image": ["0", 0]}} for n in range(28)})


def open_queue(name: str) -> tuple[Any, Any]:
    queue = SqliteHuey(name, filename=str(FOLDER / f"{name}.db"), fsync=True)

    @queue.task()  # type: ignore[untyped-decorator]
    def run(body: str) -> None:
        return None

    return queue, run


def enqueue(_: int) -> int:
    _, run = open_queue("enqueue")
    until, done = time.perf_counter() + SECONDS, 0
    while time.perf_counter() < until:
        run(BODY)
        done += 1
    return done


def work(_: int) -> int:
    queue, _ = open_queue("work")
    done = 0
    while (task := queue.dequeue()) is not None:
        queue.execute(task)
        done += 1
    return done


def side_by_side(function: Callable[[int], int], processes: int) -> float:
    with multiprocessing.Pool(processes) as pool:
        started = time.perf_counter()
        done = sum(pool.map(function, range(processes), chunksize=1))
        return done / (time.perf_counter() - started)


def main() -> None:
    found = {}
    for workers in (1, 4):
        _, run = open_queue("work")
        for _ in range(TASKS):
            run(BODY)
        found[f"C3 claim + complete, workers: {workers} (1/s)"] = side_by_side(work, workers)
    for callers in (1, 4):
        row = "C1" if callers == 1 else "C2"
        found[f"{row} enqueue, callers: {callers} (1/s)"] = side_by_side(enqueue, callers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
