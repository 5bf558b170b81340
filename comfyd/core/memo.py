"""What resolve() made of each instance, and from what: equal inputs are not worked on again.

Owns: the comparison. Must not: change a result; resolve() says the same with and without it.
"""

from collections.abc import Callable

from comfyd.model.base import Frozen
from comfyd.model.process import DesiredProcess


class Memo:
    """Handed to every call of resolve() by the one who calls it often."""

    def __init__(self) -> None:
        self._shared: object = None
        self._made: dict[str, tuple[object, DesiredProcess]] = {}

    def begin(self, shared: object, keys: set[str]) -> None:
        """shared: what all instances depend on. Those that are not in `keys` are forgotten."""
        same = shared == self._shared
        self._shared, self._made = shared, {k: made for k, made in self._made.items() if same and k in keys}

    def made(self, key: str, inputs: object, make: Callable[[], DesiredProcess]) -> DesiredProcess:
        known = self._made.get(key)
        if known is None or known[0] != inputs:
            known = self._made[key] = (inputs, make())
        return known[1]


def given_fields(model: Frozen | None) -> frozenset[str]:
    """Two models that are equal may still differ in what was written and what is a default."""
    return frozenset(model.model_fields_set) if model is not None else frozenset()
