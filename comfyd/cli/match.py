"""Which instances a word means: an id, then a name, then a port; `A-B` is a range of ports; `all` is all."""

import re
from collections.abc import Sequence

from comfyd.cli.verb import USAGE, Failure, did_you_mean
from comfyd.client.shapes import Instance

_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


def matching(instances: Sequence[Instance], word: str) -> list[Instance]:
    """Never empty for a word other than `all`: raises Failure that lists what there is."""
    if word == "all":
        return list(instances)
    span = _RANGE.fullmatch(word)
    if span:
        return _in_range(instances, int(span[1]), int(span[2]))
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 11 else None
    by_id = [i for i in instances if number is not None and i.get("id") == number]
    by_name = [i for i in instances if word in (i.get("name"), i.get("key"))]
    by_port = [i for i in instances if number is not None and i.get("port") == number]
    found = by_id or by_name or by_port
    if len(found) > 1:
        names = " and ".join(str(i.get("name")) for i in found)
        raise Failure(f"{word} may mean {names}: name one", USAGE, "ambiguous_instance")
    return found or _unknown(instances, word)


def one(instances: Sequence[Instance], word: str) -> Instance:
    """Exactly one instance."""
    found = matching(instances, word)
    if len(found) != 1:
        raise Failure(f"{word} means {len(found)} instances: name one", USAGE, "ambiguous_instance")
    return found[0]


def address(instance: Instance) -> str | int:
    """What the API's paths take for it."""
    number = instance.get("id")
    return number if number is not None else str(instance.get("name") or instance.get("key"))


def _in_range(instances: Sequence[Instance], low: int, high: int) -> list[Instance]:
    if low > high:
        raise Failure(f"{low}-{high} is no range of ports: write the lower one first", USAGE, "usage")
    found = [i for i in instances if low <= (i.get("port") or 0) <= high]
    return found or _unknown(instances, f"{low}-{high}")


def _unknown(instances: Sequence[Instance], word: str) -> list[Instance]:
    names = [str(i.get("name")) for i in instances]
    known = ", ".join(names) if names else "none (instances.json declares no instance)"
    what = "no instance on a port in" if _RANGE.fullmatch(word) else "no instance"
    raise Failure(
        f"{what} '{word}'{did_you_mean(word, names)} known: {known}", code="unknown_instance", details={"known": names}
    )
