"""`queue pause|resume` against a server that answers like a daemon."""

from tests.cli.serving import World, comfyd, serving


def test_pause_and_resume_name_their_environment() -> None:
    answers = {
        f"POST /api/queue/{verb}": (200, {"message": f"{verb} done", "paused": []}) for verb in ("pause", "resume")
    }
    with serving(World(answers=answers)) as seen:
        for words, said in ((["pause"], "pause done"), (["resume", "comm"], "resume done")):
            ran = comfyd("queue", *words, "--url", seen.url)
            assert (ran.code, ran.out, ran.err.strip()) == (0, "", said)
        assert comfyd("queue", "pause", "comm", "--json", "--url", seen.url).json["paused"] == []
    assert seen.asked("POST", "/api/queue/pause") == [None, {"environment": "comm"}]
    assert seen.asked("POST", "/api/queue/resume") == [{"environment": "comm"}]


def test_status_says_that_it_is_paused() -> None:
    world = World()
    since = "2026-01-31T12:00:00.000Z"
    with serving(world) as seen:
        assert "paused" not in comfyd("status", "--url", seen.url).err
        world.paused = [{"environment": None, "since": since, "by": "unix"}]
        told = comfyd("status", "--url", seen.url).err
        assert f"the queue is paused since {since}, by unix" in told


def test_dead_tasks_are_listed_and_deleted() -> None:
    page = {"tasks": [{"taskId": "task_9", "status": "FAILED", "task_message": "poison"}], "queue_length": 0}
    world = World(
        answers={"GET /api/queue/dead": (200, page), "DELETE /tasks/task_9": (200, {"message": "Task deleted"})}
    )
    with serving(world) as seen:
        ran = comfyd("task", "dead", "--workflow", "draw", "--url", seen.url)
        assert (ran.code, "task_9" in ran.out, "poison" in ran.out) == (0, True, True)
        assert comfyd("task", "delete", "task_9", "--url", seen.url).err.strip() == "Task deleted"
    assert [path for _, path, _, _ in seen.requests] == [
        "/api/queue/dead?workflow_name=draw&limit=50",
        "/tasks/task_9",
    ]
