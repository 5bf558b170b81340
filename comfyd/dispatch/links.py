"""All links: one for every process run that has, or may get, prompts of ours.

Owns: making and dropping links as control's observations change, and the evidence cell. Must not: claim or finish.
"""

from collections.abc import Callable

import aiohttp
from anyio.abc import TaskGroup

from comfyd.dispatch.link import Link, base_url, output_roots
from comfyd.dispatch.pace import Pace
from comfyd.live import Live
from comfyd.model.base import Now
from comfyd.model.observed import Evidence, ObservedProcess
from comfyd.model.paths import Paths
from comfyd.model.task import Claim, Slot


class Links:
    """Links by generation. `open` and `notice_gone` run on the loop and never wait."""

    def __init__(self, live: Live, paths: Paths, clock: Callable[[], Now], node_id: str, pace: Pace) -> None:
        self._live, self._paths, self._clock = live, paths, clock
        self._node_id, self._pace = node_id, pace
        self._links: dict[str, Link] = {}

    def alive(self, generation: str) -> ObservedProcess | None:
        """The process run of that generation, as long as control sees it."""
        processes = self._live.observed.get().processes
        return next((p for p in processes if generation and p.generation == generation and p.alive), None)

    def open(self, slot: Slot, session: aiohttp.ClientSession, group: TaskGroup) -> Link:
        """The link of that run, made if needed."""
        link = self._links.get(slot.generation)
        if link is not None:
            return link
        desired = self._live.resolved.get().process(slot.key)  # None: it runs on although no file names it now
        url = base_url(desired.spec.listen if desired else "", slot.port)
        roots = output_roots(desired, self._paths) if desired else {}
        client_id = f"comfyd-{self._node_id}-{slot.generation}"
        link = Link(slot, session, url, client_id, roots, self._pace, lambda: self._clock().mono, self.publish)
        self._links[slot.generation] = link
        if self.alive(slot.generation) is None:
            link.lose()
        group.start_soon(link.run)
        return link

    def slot_of(self, claim: Claim) -> Slot | None:
        """Where a recovered prompt may still be: the same run of the same process."""
        process = self.alive(claim.task.generation or "")
        port = (process.port if process else None) or claim.task.target_port
        if process is None or port is None:
            return None
        return Slot(
            key=process.key,
            generation=process.generation,
            port=port,
            environment=claim.task.environment,
            instance=claim.task.instance or process.key,
        )

    def notice_gone(self) -> None:
        """Tell links whose run is over; drop those without prompts."""
        for generation, link in list(self._links.items()):
            if self.alive(generation) is None:
                link.lose(crashed=self._died(link.slot.key))
                if not link.in_flight:
                    link.close()
                    del self._links[generation]
                    self.publish()

    def _died(self, key: str) -> bool:
        """Whether its last run ended by itself, or had to be ended because it hung: that may be due to a prompt."""
        process = self._live.observed.get().process(key)
        end = process.last_exit if process else None
        return end is not None and not end.asked and not end.short and end.reason != "device_errors"

    def resting(self) -> dict[str, float]:
        """Generations that take no prompts although they are ready, and for how many seconds still."""
        return {generation: link.resting_s for generation, link in self._links.items() if link.resting_s}

    def evidence(self) -> dict[str, Evidence]:
        """By key; of two runs of one key the one that lives."""
        found: dict[str, Evidence] = {}
        for link in sorted(self._links.values(), key=lambda link: not link.gone.is_set()):
            found[link.slot.key] = link.evidence()
        return found

    def publish(self) -> None:
        self._live.evidence.set(self.evidence())
