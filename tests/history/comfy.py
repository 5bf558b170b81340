"""ComfyUI and its dispatcher as far as histories need them: who was given which prompt, and what was forgotten."""

from typing import Any


class Comfy:
    """log: as the journal of the stand-in. A crash forgets every prompt and gives the next process another pid."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self._pid = 1
        self._known: set[str] = set()

    def submit(self, prompt: str, task: str) -> None:
        for event in ("accepted", "executed"):
            self.log.append({"event": event, "pid": self._pid, "prompt_id": prompt, "task": task})
        self._known.add(prompt)

    def reattach(self, prompt: str, task: str) -> bool:
        """What a dispatcher does with a prompt of its predecessor: look, never post. False: it is lost."""
        return prompt in self._known

    def crash(self) -> None:
        self._pid += 1
        self._known.clear()


class DoubleSubmit(Comfy):
    """Mutant: posts again what was there before the daemon died."""

    def reattach(self, prompt: str, task: str) -> bool:
        self.submit(prompt, task)
        return True


class Post:
    """Callbacks, from an outbox that is written with the results: the event log, and a mark of what was sent.

    Once the daemon has one of its own this gives way to it.
    """

    def __init__(self) -> None:
        self.sent = 0

    def ended(self, task: str, state: str) -> None:
        """The daemon was told that a result is committed."""

    def killed(self) -> None:
        """The daemon died."""

    def due(self, ends: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
        """(task, state) to be sent now. ends: (event number, task, state) of everything that has ended."""
        found = [(task, state) for seq, task, state in ends if seq > self.sent]
        self.sent = max((seq for seq, _, _ in ends), default=self.sent)
        return found


class LostOutbox(Post):
    """Mutant: remembers in memory what is to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[str, str]] = []

    def ended(self, task: str, state: str) -> None:
        self._waiting.append((task, state))

    def killed(self) -> None:
        self._waiting.clear()

    def due(self, ends: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
        found, self._waiting = self._waiting, []
        return found
