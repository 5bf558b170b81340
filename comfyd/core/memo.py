"""What parse() and resolve() made of each instance, and from what: equal inputs are not worked on again.

Owns: the comparison. Must not: change a result; both say the same with and without it.
"""

from collections.abc import Callable, Set
from typing import Any

from comfyd.model.base import Frozen
from comfyd.model.desired import InstanceSpec
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


class Entries:
    """Entries of instances.json that gave an instance and no issue, by what was written."""

    def __init__(self) -> None:
        self._shared: object = None
        self._known: dict[str, InstanceSpec] = {}
        self._used: dict[str, InstanceSpec] = {}

    def begin(self, shared: object) -> None:
        """shared: what all entries depend on. What the last document did not have is forgotten."""
        same = shared == self._shared
        self._shared, self._known, self._used = shared, (self._used if same else {}), {}

    def known(self, raw: Any) -> InstanceSpec | None:
        written = repr(raw)  # unlike ==, it tells 1 from 1.0 and from true
        spec = self._known.get(written)
        if spec is not None:
            self._used[written] = spec
        return spec

    def keep(self, raw: Any, spec: InstanceSpec) -> None:
        self._used[repr(raw)] = spec


def given_fields(model: Frozen | None) -> Set[str]:
    """Two models that are equal may still differ in what was written and what is a default."""
    return model.model_fields_set if model is not None else frozenset()
