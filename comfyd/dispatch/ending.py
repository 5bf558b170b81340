"""What the end of a prompt means for its task: stored, failed, or tried again for another reason than the task's own.

Owns: that meaning, and its outputs on disk. Must not: claim or finish leases, or follow prompts that still run.
"""

import errno

from comfyd.core.blame import DeviceError
from comfyd.dispatch.bench import Bench, put_back
from comfyd.dispatch.comfy import NotServed, Unanswered
from comfyd.dispatch.comfy_history import Verdict
from comfyd.dispatch.link import Link
from comfyd.dispatch.outputs import store_outputs
from comfyd.failpoint import failpoint
from comfyd.logs import get_logger
from comfyd.model.task import Outcome, TaskState

log = get_logger(__name__)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


async def outcome_of(verdict: Verdict, task_id: str, link: Link, bench: Bench) -> Outcome:
    """For a prompt that ended by itself, well or not. Raises Unanswered if an output cannot be fetched now."""
    if verdict.device:
        return _device_error(verdict, task_id, link, bench)
    if verdict.memory:
        return await _out_of_memory(verdict, task_id, link, bench)
    if verdict.kind == "error":
        return Outcome(state=TaskState.FAILED, message=verdict.message)
    link.succeeded()
    return await _store(verdict, task_id, link, bench)


def _device_error(verdict: Verdict, task_id: str, link: Link, bench: Bench) -> Outcome:
    """Back to the queue without a charge, unless the task takes the error along from process to process."""
    spoilt = link.condemned  # by an earlier prompt: this one had no chance
    link.device_failed(verdict.message, poisoned=verdict.poisoned)
    if link.condemned:
        bench.alarm()
    else:
        link.rest(bench.pace.device_rest_s)
    error = DeviceError(link.slot.generation, link.good)
    if spoilt or bench.retries.again_after_device(task_id, error):
        return put_back(f"device error on instance {link.slot.instance}: {verdict.message}")
    return Outcome(state=TaskState.FAILED, message=f"poison: a device error wherever it runs: {verdict.message}")


async def _out_of_memory(verdict: Verdict, task_id: str, link: Link, bench: Bench) -> Outcome:
    """Once more, with all models unloaded before. It counts as an attempt."""
    if not bench.retries.again_after_memory(task_id):
        return Outcome(state=TaskState.FAILED, message=verdict.message)
    try:
        await link.client.free()
    except Unanswered as error:
        log.info("models not unloaded", task=task_id, instance=link.slot.instance, reason=error.message)
    return Outcome(state=TaskState.PENDING, message=f"out of memory, models are unloaded: {verdict.message}")


async def _store(verdict: Verdict, task_id: str, link: Link, bench: Bench) -> Outcome:
    folder = bench.outputs / task_id
    try:
        files = await store_outputs(verdict.files, folder, link.roots, link.client)
    except NotServed as error:
        return Outcome(state=TaskState.FAILED, message=f"an output is missing: {error.message}")
    except OSError as error:
        if error.errno in FULL:
            link.rest(bench.pace.full_disk_rest_s)
            return put_back(f"no space for the outputs: {error.strerror}")
        return Outcome(state=TaskState.FAILED, message=f"an output could not be stored: {error.strerror or error}")
    failpoint("outputs_stored")
    urls = [f"/tasks/{task_id}/outputs/{n}" for n in range(len(files))]
    return Outcome(state=TaskState.COMPLETED, output={"urls": urls, "files": files, "text": list(verdict.texts)})
