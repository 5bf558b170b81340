"""Results as text for a terminal or as Markdown for docs/performance.md."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.harness import REPOSITORY, Goal, Result, Samples, number


def heading(markdown: bool) -> str:
    """Machine, date and commit: without them a figure means nothing."""
    text = f"{machine()}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; commit {commit()}"
    return f"{text}\n" if markdown else f"# {text}\n"


def machine() -> str:
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) // 1024**2 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0)
    kernel, python = platform.release(), platform.python_version()
    return f"{os.cpu_count()} x {models[0] if models else '?'}, {memory} GiB, Linux {kernel}, Python {python}"


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "comfyd") else "")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def shown(result: Result, markdown: bool) -> str:
    parts = [f"### {result.title}" if markdown else f"== {result.title}"]
    parts.append(_figures(result.samples, markdown))
    parts += [f"- {remark}" for remark in dict.fromkeys(result.samples.remarks)]
    parts.append(_goals(result.goals, markdown))
    return "\n\n".join(part for part in parts if part)


def _figures(samples: Samples, markdown: bool) -> str:
    systems = list(dict.fromkeys(system for _, system in samples.values))
    measures = list(dict.fromkeys(measure for measure, _ in samples.values))
    rows = [["measure", *systems]]
    for measure in measures:
        medians = (samples.median(measure, system) for system in systems)
        rows.append([measure, *("" if value is None else number(value) for value in medians)])
    return _table(rows, markdown)


def _goals(goals: list[Goal], markdown: bool) -> str:
    rows = [["row", "metric", "goal", "result", ""]]
    rows += [[goal.row, goal.metric, goal.goal, goal.result, goal.verdict] for goal in goals]
    return _table(rows, markdown)


def _table(rows: list[list[str]], markdown: bool) -> str:
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
