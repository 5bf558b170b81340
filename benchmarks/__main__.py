"""python -m benchmarks NAME [--quick] [--markdown]. NAME: a row (A1, B2, ...), a group (A, B, C, D, G, H) or `all`."""

import argparse
import importlib
import sys
import time

from benchmarks import table
from benchmarks.harness import Options
from benchmarks.world import Unavailable

GROUPS = {
    "A": ("supervision",), "B": ("creating",), "C": ("queueing", "sharing", "depth"), "D": ("backlog",),
    "G": ("watching",), "H": ("starting",),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", help="a row (A1), a group (A, B, C, D, G, H) or all")
    parser.add_argument("--quick", action="store_true", help="a smoke run of under a minute; its figures mean little")
    parser.add_argument("--markdown", action="store_true", help="tables for docs/performance.md")
    parser.add_argument("--rounds", type=int, default=3, help="paired runs, of which the median counts")
    parser.add_argument("--systems", default="", help="only these, for example comfyd,floor,s6")
    given = parser.parse_args()
    wanted = list(GROUPS) if given.name == "all" else [given.name[0].upper()]
    if not set(wanted) <= set(GROUPS):
        parser.error(f"{given.name}: no such benchmark")
    rows = frozenset({given.name.upper()}) if len(given.name) == 2 else frozenset[str]()
    options = Options(given.quick, given.rounds, tuple(filter(None, given.systems.split(","))), rows)
    print(table.heading(given.markdown), flush=True)
    for name in (name for group in wanted for name in GROUPS[group]):
        module = importlib.import_module(f"benchmarks.{name}")
        if len(GROUPS[wanted[0]]) > 1 and rows and not rows & set(module.ROWS):
            continue
        started = time.monotonic()
        try:
            result = module.run(options)
        except Unavailable as reason:
            print(f"{name}: not measured: {reason}", file=sys.stderr)
            return 2
        result.goals = [goal for goal in result.goals if not rows or goal.row in rows]
        print(table.shown(result, given.markdown), f"({time.monotonic() - started:.0f} s)\n", sep="\n\n", flush=True)
    return 0


sys.exit(main())
