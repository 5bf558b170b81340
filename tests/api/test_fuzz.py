"""Random requests to every route: no answer is a 5xx but the documented ones, and every error has the one shape."""

import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from comfyd.api.app import FAMILIES
from comfyd.api.operation import Operation, operations
from tests.api.world import GRAPH, JSON, MAIN, SPARE, world

WORDS = (
    "", "0", "1", "-1", "main", "spare", "paint", "comm", "..", "../../etc/passwd", "%", "a b", "é", "\u202e",
    "x" * 300, "nan", "inf", "1e9", "task_" + "0" * 32, "null", "true", "PENDING",
    "\n", "'; DROP TABLE task; --", "$(id)",
)  # fmt: skip
KEYS = (
    "id", "port", "name", "extra_args", "environment", "instances", "params", "wf_json", "priority", "want",
    "fields", "taskId", "status", "started_at", "output_data", "lease_token", "workflow_name", "expires_at", "gpus",
    "env", "probe",
)  # fmt: skip
BASES: tuple[dict[str, Any], ...] = (
    MAIN,
    {"environment": "comm", "instances": [SPARE]},
    {"params": {"input_data": {"wf_json": GRAPH}}, "priority": "vip", "workflow_name": "paint"},
    {"want": "up", "fields": {"port": 3005, "probe": {"type": "tcp"}}, "expires_at": None},
    {"source_url": "http://a/x", "target_url": "http://a/y", "resolution": "8x8", "media_type": "image"},
    {"taskId": "task_1", "status": "COMPLETED", "started_at": 1, "output_data": {}},
)
QUERY = ("wait", "tail", "follow", "limit", "cursor", "status", "after", "workflow_names", "environment", "nope")
ALLOWED = {500: {"start_failed", "stop_failed"}, 503: {"not_ready"}}


def value(dice: random.Random, depth: int = 0) -> Any:
    plain = [*WORDS, None, True, False, 0, 1, -1, 3001, 2**31, 2**63, 1e308, 0.5, GRAPH, MAIN, SPARE]
    roll = dice.random()
    if depth > 3 or roll < 0.6:
        return dice.choice(plain)
    if roll < 0.75:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {dice.choice((*KEYS, *WORDS)): value(dice, depth + 1) for _ in range(dice.randrange(6))}


def body_of(dice: random.Random) -> Any:
    """Half of them nearly right: a good body with one or two fields replaced."""
    if dice.random() < 0.5:
        return value(dice)
    base = dict(dice.choice(BASES))
    for _ in range(dice.randrange(1, 3)):
        base[dice.choice((*base, *KEYS))] = value(dice)
    return base


def request(dice: random.Random, one: Operation) -> tuple[str, str, bytes | None]:
    path = dice.choice(one.paths)
    while "{" in path:
        begin, end = path.index("{"), path.index("}")
        path = path[:begin] + (quote(dice.choice(WORDS), safe="") or "x") + path[end + 1 :]
    query = [f"{name}={quote(dice.choice(WORDS))}" for name in dice.sample(QUERY, dice.randrange(3))]
    query = [part for part in query if not part.startswith(("follow=1", "follow=true", "wait="))] + ["wait=0"]
    body = json.dumps(body_of(dice)).encode() if dice.random() < 0.8 and one.method != "GET" else None
    return one.method, f"{path}?{'&'.join(query)}", body


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(3))
async def test_random_requests(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    targets = [one for one in operations(FAMILIES) if one.media != "text/event-stream"]
    async with world(tmp_path) as w:
        for _ in range(500):
            method, path, body = request(dice, dice.choice(targets))
            answer = await w.call(method, path, data=body, headers=JSON if body else None)
            shown = (method, path, body, answer.status, answer.body[:500])
            if answer.status >= 400:
                assert answer.code, shown
            assert answer.status < 500 or answer.code in ALLOWED.get(answer.status, ()), shown
            assert b"Traceback" not in answer.body, shown
        assert (await w.get("/health")).status == 200
