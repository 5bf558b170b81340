"""Markdown read as far as the tests need it: headings, fenced blocks, links."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str = "sh") -> list[str]:
    """Bodies of the fenced blocks of one language, in order."""
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def commands(text: str) -> list[str]:
    """Command lines of all shell blocks without comments and blank lines."""
    lines = [line.split(" # ")[0].strip() for body in blocks(text) for line in body.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def headings(text: str) -> list[int]:
    """Level of each heading, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", _FENCE.sub("", text), re.MULTILINE)]


def section(text: str, anchor: str) -> str:
    """What stands between the comment `<!-- anchor -->` and the next heading."""
    return re.split(r"^#", text.split(f"<!-- {anchor} -->", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def links(text: str) -> list[str]:
    """Targets of links to files of the checkout."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return [target for target in found if "://" not in target]
