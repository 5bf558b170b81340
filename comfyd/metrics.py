"""Counters and gauges for `/metrics`. Names begin with `comfyd_`; labels are low in number.

Owns: the registry. Must not: import prometheus_client before somebody asks for the page (start time counts).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Metrics:
    """Plain counters, kept in a dict; `api` renders them with prometheus_client when asked."""

    counters: dict[tuple[str, Labels], float] = field(default_factory=lambda: defaultdict(float))

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to the counter `comfyd_<name>_total`."""
        self.counters[(name, tuple(sorted(labels.items())))] += amount

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """(name, labels, value), sorted by name and labels."""
        for (name, labels), value in sorted(self.counters.items()):
            yield name, dict(labels), value
