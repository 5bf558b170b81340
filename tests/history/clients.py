"""Who uses the queue: each client calls the store as it pleases and records what it asked and what it was told."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from comfyd.core.rank import rank_cost
from comfyd.errors import ComfydError, StoreError
from comfyd.model.base import Now
from comfyd.model.task import Claim, ExternalUpdate, NewTask, Outcome, Slot, Task, TaskState
from comfyd.store.protocol import TaskStore
from tests.history.case import ENDS
from tests.history.life import LEASE_S

if TYPE_CHECKING:
    from tests.history.world import World

Shape = Callable[[Any], dict[str, Any]]
SLOTS = tuple(
    Slot(key=f"comfyui/{n}", generation="g", port=3001 + n, environment="comm", instance=f"i{n}") for n in range(3)
)
CALLBACK = "https://receiver.example/done"


class NoAnswer(Exception):
    """The store died first."""


class Client:
    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.dice = random.Random(world.dice.random())
        self.recorder = world.recorder(name)

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            try:
                await self.step()
            except NoAnswer:
                await self.world.up.wait()
            await asyncio.sleep(0)
        self.world.busy -= 1

    async def step(self) -> None:
        raise NotImplementedError

    async def ask(
        self, op: str, key: str | None, arg: dict[str, Any],
        make: Callable[[TaskStore, Now], Awaitable[Any]], shape: Shape,
    ) -> Any:  # fmt: skip
        """Call the store and record it. Returns what it returned, None if it refused. Raises NoAnswer."""
        life = self.world.life
        call = self.recorder.invoke(op, key, **arg)
        if life.killed:
            call.timeout()
            raise NoAnswer
        answer = asyncio.ensure_future(make(life.tasks, self.world.clock.now()))
        gone = asyncio.ensure_future(life.gone.wait())
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if life.killed:  # an answer that came at the same time may be of what died with it
            answer.add_done_callback(lambda f: f.cancelled() or f.exception())
            call.timeout()
            raise NoAnswer
        try:
            result = answer.result()
        except ComfydError as error:
            if isinstance(error, StoreError):
                raise
            call.answer(error=error.code)
            return None
        call.answer(**shape(result))
        return result


def shown(task: Task) -> dict[str, Any]:
    return {"state": task.status.value, "output": task.output_data}


def granted(claims: Any) -> dict[str, Any]:
    return {
        "grants": [
            {"task": c.task.task_id, "token": c.lease.token, "prompt": c.prompt_id, "params": c.task.params}
            for c in claims
        ]
    }


class Creator(Client):
    """With and without keys; some calls are repeated, some with another body."""

    number = 0

    async def step(self) -> None:
        self.number += 1
        mark = f"{self.name}-{self.number}"
        key = f"key-{mark}" if self.dice.random() < 0.7 else None
        new = NewTask(
            workflow_name="draw",
            environment="comm",
            params={"input_data": {"wf_json": {"1": {"class_type": "Mark", "inputs": {"mark": mark}}}}},
            rank_cost=rank_cost("normal"),
            max_attempts=self.dice.randint(1, 4),
            callback_url=CALLBACK if self.dice.random() < 0.3 else None,
            idempotency_key=key,
            body_digest=mark,
        )
        if self.dice.random() < 0.5:
            await asyncio.sleep(0.001)
        try:
            await self.create(new)
        except NoAnswer:
            await self.world.up.wait()
            if key is not None:  # who has a key asks again
                await self.create(new)
        if key is not None and self.dice.random() < 0.4:
            await self.create(new)
        if key is not None and self.dice.random() < 0.2:
            other = {"body_digest": f"{mark}!", "params": {"input_data": {"wf_json": {"mark": f"{mark}!"}}}}
            await self.create(new.model_copy(update=other))

    async def create(self, new: NewTask) -> None:
        made = await self.ask(
            "create", new.idempotency_key, {"workflow": new.workflow_name, "params": new.params},
            lambda tasks, now: tasks.enqueue(new, now), lambda r: {"task": r[0].task_id, "made": r[1]},
        )  # fmt: skip
        if made is not None and made[1]:
            self.world.tasks.append(made[0].task_id)


class Holder(Client):
    """Has leases, uses them well or badly, and remembers those that it should have forgotten."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.held: list[Claim] = []
        self.told: list[tuple[Claim, Outcome]] = []

    def outcome(self, claim: Claim) -> Outcome:
        output = {"urls": [claim.lease.token]}
        return self.dice.choice(
            [
                Outcome(state=TaskState.COMPLETED, output=output),
                Outcome(state=TaskState.COMPLETED, output=output),
                Outcome(state=TaskState.FAILED, message="it broke", output=output),
                Outcome(state=TaskState.PENDING, message="it crashed"),
                Outcome(state=TaskState.PENDING, message="instance lost", charged=False),
            ]
        )

    async def use(self) -> None:
        """One thing that a holder does."""
        chance = self.dice.random()
        if self.told and chance < 0.2:
            claim, outcome = self.dice.choice(self.told[-6:])
            await self.report(claim, outcome if self.dice.random() < 0.5 else self.outcome(claim))
        elif self.held and chance < 0.5:
            await self.renew(self.dice.choice(self.held))
        elif self.held and chance < 0.9:
            claim = self.held.pop(self.dice.randrange(len(self.held)))
            self.told.append((claim, self.outcome(claim)))
            await self.report(*self.told[-1])
        elif self.held:
            for _ in range(self.dice.randrange(60)):  # a slow one: its lease may run out meanwhile
                await asyncio.sleep(0.0002)

    async def renew(self, claim: Claim) -> None:
        lease = claim.lease
        await self.ask(
            "renew", lease.task_id, {"token": lease.token, "lease_s": LEASE_S},
            lambda tasks, now: tasks.renew(lease, LEASE_S, now), lambda _: {},
        )  # fmt: skip

    async def report(self, claim: Claim, outcome: Outcome) -> None:
        raise NotImplementedError


def body(outcome: Outcome) -> dict[str, Any]:
    return {"message": outcome.message, "output": outcome.output, "charged": outcome.charged}


class Inside(Holder):
    """The daemon's own dispatch: claims for slots, posts prompts, finishes."""

    async def step(self) -> None:
        if len(self.held) < 2 and self.dice.random() < 0.6:
            await self.claim(self.dice.randint(0, 2))
        else:
            await self.use()

    async def claim(self, slots: int) -> None:
        wanted = self.dice.sample(SLOTS, slots)
        claims = await self.ask(
            "claim", None, {"lease_s": LEASE_S}, lambda tasks, now: tasks.claim(wanted, LEASE_S, now), granted
        )
        for claim in claims:
            self.world.comfy.submit(claim.prompt_id, claim.task.task_id)
            self.held.append(claim)

    async def report(self, claim: Claim, outcome: Outcome) -> None:
        lease = claim.lease
        task = await self.ask(
            "finish", lease.task_id, {"token": lease.token, "state": outcome.state.value, "body": body(outcome)},
            lambda tasks, now: tasks.finish(lease, outcome, now), shown,
        )  # fmt: skip
        if task is not None and task.status in ENDS and task.callback_url:
            self.world.post.ended(task.task_id, task.status.value)

    async def recover(self) -> None:
        """The next daemon takes the leases of the last one over."""
        node_id = self.world.life.stores.node.node_id
        claims = await self.ask(
            "recover", None, {"lease_s": LEASE_S}, lambda tasks, now: tasks.recover(node_id, LEASE_S, now), granted
        )
        for claim in claims:
            if self.world.comfy.reattach(claim.prompt_id, claim.task.task_id):
                outcome = Outcome(state=TaskState.COMPLETED, output={"urls": [claim.lease.token]})
            else:
                outcome = Outcome(state=TaskState.PENDING, message="prompt lost", charged=False)
            if self.dice.random() < 0.8:
                await self.report(claim, outcome)

    async def run_dry(self) -> None:
        await self.claim(len(SLOTS))
        while self.held:
            claim = self.held.pop()
            await self.report(claim, Outcome(state=TaskState.COMPLETED, output={"urls": [claim.lease.token]}))


class Outside(Holder):
    """An outside worker: fetches, tells its progress or not, and reports with or without its token."""

    async def step(self) -> None:
        if not self.held and self.dice.random() < 0.5:
            claim = await self.ask(
                "fetch", None, {"lease_s": LEASE_S, "caller": self.name},
                lambda tasks, now: tasks.fetch(self.name, None, None, {}, LEASE_S, now),
                lambda claim: granted([claim] if claim else []),
            )  # fmt: skip
            if claim is not None:
                self.held.append(claim)
        else:
            await self.use()

    async def renew(self, claim: Claim) -> None:
        if self.dice.random() < 0.5:
            await super().renew(claim)
        else:
            await self.report(claim, Outcome(state=TaskState.PROCESSING))

    async def report(self, claim: Claim, outcome: Outcome) -> None:
        token = claim.lease.token if self.dice.random() < 0.6 else None
        change = ExternalUpdate(
            task_id=claim.task.task_id, status=outcome.state, caller=self.name, lease_token=token,
            task_message=outcome.message, output_data=outcome.output,
        )  # fmt: skip
        arg = {"token": token, "caller": self.name, "state": outcome.state.value, "body": body(outcome)}
        if outcome.state is TaskState.PROCESSING:
            arg["lease_s"] = LEASE_S
        task = await self.ask(
            "update", change.task_id, arg, lambda tasks, now: tasks.update(change, LEASE_S, now), shown
        )
        if task is not None and task.status in ENDS and task.callback_url:
            self.world.post.ended(task.task_id, task.status.value)


class Operator(Client):
    """Cancels and retries whatever it sees."""

    async def step(self) -> None:
        if not self.world.tasks or self.dice.random() < 0.6:
            await asyncio.sleep(0.001)
            return
        task, op = self.dice.choice(self.world.tasks), self.dice.choice(["cancel", "cancel", "retry"])
        found = await self.ask(op, task, {}, lambda tasks, now: getattr(tasks, op)(task, now), shown)
        if found is not None and found.status in ENDS and found.callback_url:
            self.world.post.ended(task, found.status.value)


class Reader(Client):
    async def step(self) -> None:
        if self.world.tasks:
            await self.look(self.dice.choice(self.world.tasks))

    async def look(self, task: str) -> None:
        await self.ask("get", task, {}, lambda tasks, now: tasks.get(task), shown)


class Receiver(Client):
    """Gets the callbacks. Its postman is part of the daemon and as slow as a network."""

    async def step(self) -> None:
        life = self.world.life
        if self.dice.random() < 0.7 and self.world.busy:
            await asyncio.sleep(0.002)
            return
        if life.killed:
            raise NoAnswer
        events = await life.stores.node.events(self.world.post.sent, 100_000)
        if life.killed:
            raise NoAnswer
        ends = [(e.seq, e.subject, e.data["to"]) for e in events if e.type == "task" and e.data["to"] in ENDS]
        for task, state in self.world.post.due(ends):
            self.recorder.invoke("callback", task).answer(state=state)
