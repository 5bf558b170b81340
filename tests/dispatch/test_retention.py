"""Old results go by themselves, files and rows; a failed task stays."""

from pathlib import Path

import pytest

from comfyd.dispatch import retention
from comfyd.dispatch.retention import Retention
from comfyd.errors import ComfydError
from comfyd.model.task import TaskState
from tests.dispatch.rig import Fakes, now, rig
from tests.fake import eventually
from tests.graphs import invert

pytestmark = pytest.mark.asyncio


async def test_a_result_goes_with_its_files_once_its_time_is_over(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, retention_s=1.5) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            failed = await bench.done(await bench.enqueue({"1": {"class_type": "NoSuchNode", "inputs": {}}}))
            task = await bench.done(await bench.enqueue(invert()))
            (file,) = bench.stored(task)
            assert (failed.status, file.exists()) == (TaskState.FAILED, True)

            async def gone() -> bool:
                return (await bench.stores.tasks.stats()).total == 1

            await eventually(gone, 10)
            assert not file.parent.exists()
            assert (await bench.task(failed.task_id)).status is TaskState.FAILED


async def test_many_go_in_small_batches_and_only_their_own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 4)
    async with rig(tmp_path) as bench:
        ids = [await bench.enqueue(invert()) for _ in range(10)]
        outputs = bench.paths.outputs
        for name in (*ids, "task_of_somebody_else"):
            (outputs / name).mkdir(parents=True)
            (outputs / name / "0-a.png").write_bytes(b"x")
        for task_id in ids[:9]:
            await bench.cancel(task_id)
        keeper = Retention(bench.stores.tasks, 1e-9, outputs, now)
        for left in (6, 2, 1):
            assert await keeper.run_once() == retention.BREATH_S
            assert (await bench.stores.tasks.stats()).total == left
        assert await keeper.run_once() > 0
        assert {path.name for path in outputs.iterdir()} == {ids[9], "task_of_somebody_else"}


async def test_files_that_cannot_be_removed_keep_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(retention, "remove_trees", broken)
    async with rig(tmp_path) as bench:
        task_id = await bench.enqueue(invert())
        await bench.cancel(task_id)
        with pytest.raises(PermissionError):
            await Retention(bench.stores.tasks, 1e-9, bench.paths.outputs, now).run_once()
        assert (await bench.task(task_id)).status is TaskState.CANCELLED


async def test_a_store_out_of_reach_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AGAIN_S", 0.0)
    asked = 0

    class Away:
        async def expired(self, *_: object) -> object:
            nonlocal asked
            asked += 1
            if asked == 3:
                raise RuntimeError("enough")
            raise ComfydError("away", code="store_unavailable")

    with pytest.raises(RuntimeError, match="enough"):
        await Retention(Away(), 1, tmp_path, now).run()  # type: ignore[arg-type]
