"""Facts into findings: what is fine, what is doubtful, what is wrong, and what to do about it. Pure.

Instances and environments are those of the status (JSON as the API answers it), so a daemon of another version can be
asked too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfyd.model.finding import Finding, Level

GIB = 1024**3
LITTLE_DISK = 10 * GIB
LITTLE_MEMORY = 2 * GIB
FEW_FILES = 1024
MANY_LOGS = 2 * GIB
SLOW_ANSWER_S = 2.0
SLOW_START_S = 300.0
SQLITE_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Releases with the fix of the WAL reset race: this one and later, and later ones of the two older branches."""

_DOUBTS = frozenset({"waiting_turn", "not_ready", "argument_warning", "restart_required"})
_WAITS = frozenset({("waiting_env", "installing"), ("waiting_env", "not_installed")})
_CALM_ENVIRONMENT = frozenset({"adopted", "nodes_carried"})


def sqlite_finding(version: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, version))
    newest, *branches = SQLITE_FIXED
    if version >= newest or any(version[:2] == b[:2] and version >= b for b in branches):
        return Finding(name="sqlite", level="ok", message=f"SQLite {text}")
    message = f"SQLite {text} may damage the database when two connections reset its log at once (fixed in 3.51.3)"
    hint = "use a Python with SQLite 3.51.3, 3.50.7 or 3.44.6; comfyd itself writes through one connection only"
    return Finding(name="sqlite", level="warning", message=message, hint=hint)


def size(count: float) -> str:
    """Bytes as people write them: `512 B`, `3.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def disk_finding(what: str, path: str, free: int, total: int, files: int, least: int) -> Finding:
    """files: inodes left (-1 = the file system does not count). least: below this an install refuses to begin."""
    left = f"{path}: {size(free)} of {size(total)} free"
    hint = "remove old environments, outputs or models, or give it a larger disk"
    if free < least or files == 0:
        message = left if files else f"{path}: no file can be made any more (no inodes are left)"
        return Finding(name="disk", subject=what, level="error", message=message, hint=hint)
    level: Level = "ok" if free >= min(LITTLE_DISK, total // 5) else "warning"
    return Finding(name="disk", subject=what, level=level, message=left, hint="" if level == "ok" else hint)


def memory_finding(available: int | None, ended_by_it: Sequence[str]) -> Finding:
    """ended_by_it: names of instances whose last run the kernel or the GPU ended for lack of memory."""
    if ended_by_it:
        message = f"{', '.join(ended_by_it)} ended for lack of memory"
        hint = "fewer instances at once, `--lowvram`, `gpu_exclusive`, or more memory; `comfyd status NAME` has the log"
        return Finding(name="memory", level="error", message=message, hint=hint)
    if available is None:
        return Finding(name="memory", level="ok", message="the kernel does not tell how much memory is left")
    message = f"{size(available)} of memory are available"
    if available >= LITTLE_MEMORY:
        return Finding(name="memory", level="ok", message=message)
    return Finding(name="memory", level="warning", message=message, hint="stop what is not needed, or add memory")


def instance_findings(status: Mapping[str, Any], ages: Mapping[str, float]) -> Iterable[Finding]:
    """One per instance that is fine, one per condition of the others. ages: key -> seconds in its state."""
    for one in status.get("instances", []):
        name, conditions = str(one.get("name")), one.get("conditions") or []
        if one.get("ready") or one.get("desired") == "down":
            where = f", pid {one['pid']}" if one.get("pid") else ""
            message = f"{one.get('state')} on port {one.get('port')}{where}"
            if conditions and not one.get("ready"):
                message = f"{one.get('state')}: {conditions[0].get('message')}"
            yield Finding(name="instance", subject=name, level="ok", message=message)
            conditions = conditions if one.get("ready") else []
        slow = ages.get(str(one.get("key")), 0.0) > SLOW_START_S and one.get("state") == "starting"
        for condition in conditions:
            found = _of_condition("instance", name, condition, slow=slow)
            hangs = one.get("state") == "unready" and condition.get("type") == "not_ready"
            yield found.model_copy(update={"level": "error"}) if hangs else found


def _of_condition(name: str, subject: str, condition: Mapping[str, Any], *, slow: bool = False) -> Finding:
    kind, reason = str(condition.get("type")), str(condition.get("reason"))
    level: Level = "warning" if kind in _DOUBTS or (kind, reason) in _WAITS else "error"
    message, hint = f"{kind}/{reason}: {condition.get('message')}", str(condition.get("hint") or "see `comfyd status`")
    if slow:
        message += f" (for more than {SLOW_START_S / 60:.0f} minutes)"
        hint += "; nodes that load for long, downloads at the start and slow disks make it slow"
    return Finding(name=name, subject=subject, level=level, message=message, hint=hint)


def environment_findings(one: Mapping[str, Any], *, wanted: bool) -> Iterable[Finding]:
    """One environment as the status shows it."""
    name, found = str(one.get("name")), list(one.get("conditions") or [])
    for condition in found:
        if condition.get("type") in _CALM_ENVIRONMENT:
            text = f"{condition.get('type')}/{condition.get('reason')}: {condition.get('message')}"
            yield Finding(name="environment", subject=name, level="ok", message=text)
            continue
        finding = _of_condition("environment", name, condition)
        goes_on = bool(one.get("installed")) or not wanted
        yield finding.model_copy(update={"level": "warning"}) if goes_on else finding
    if one.get("installed"):
        message = f"installed, generation {one.get('generation')}"
        yield Finding(name="environment", subject=name, level="ok", message=message)
    elif not found and wanted:
        hint = f"`comfyd run` installs it by itself; `comfyd env install {name}` asks for it"
        message = f"not installed yet ({one.get('state')})"
        yield Finding(name="environment", subject=name, level="warning", message=message, hint=hint)
    elif not found:
        yield Finding(name="environment", subject=name, level="ok", message="not installed, and nothing wants it")


def gpu_findings(
    gpus: Sequence[Mapping[str, Any]], problem: str | None, missing: str | None, *, wanted: bool
) -> Iterable[Finding]:
    """missing: why nothing can be read at all (no library); wanted: some instance would use a GPU."""
    if problem:
        hint = "reboot after a driver update; in a container, start it anew with `--gpus all`"
        yield Finding(name="gpu", level="error", message=problem, hint=hint)
    for gpu in gpus:
        used, total = int(gpu["memory_used"]), int(gpu["memory_total"])
        busy = f", {gpu['utilisation']} % busy" if gpu.get("utilisation") is not None else ""
        warm = f", {gpu['temperature']} C" if gpu.get("temperature") is not None else ""
        message = f"{gpu['name']}: {size(used)} of {size(total)} used{busy}{warm}"
        full = total > 0 and used > 0.95 * total
        hint = "its memory is nearly full: `--lowvram`, fewer instances on it, or `gpu_exclusive`" if full else ""
        yield Finding(
            name="gpu", subject=str(gpu["index"]), level="warning" if full else "ok", message=message, hint=hint
        )
    if not gpus and not problem:
        message = missing or "no GPUs: there is no NVIDIA driver here"
        hint = "give the container GPUs (`--gpus all`), or add `--cpu` to `extra_args` of instances that need none"
        yield Finding(name="gpu", level="warning" if wanted else "ok", message=message, hint=hint if wanted else "")


def queue_finding(stats: Mapping[str, Any], ready: int, utilisation: Sequence[int]) -> Finding:
    """Whether tasks wait for something. stats: as `GET /api/stats`; ready: instances; utilisation: percent per GPU."""
    waiting, running = int(stats.get("pending", 0)), int(stats.get("processing", 0))
    message = f"{waiting} tasks wait, {running} run, {ready} instances are ready"
    if waiting and not ready:
        return Finding(name="queue", level="warning", message=message, hint="see why no instance is ready above")
    if waiting and utilisation and max(utilisation) < 30:
        hint = "more instances of its environment take more tasks at once; `GET /workflows` shows `ready_ports`"
        return Finding(name="queue", level="warning", message=f"{message}, and no GPU is busy", hint=hint)
    return Finding(name="queue", level="ok", message=message)
