"""Checks of instances: their state, their processes, their ports and who holds those."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from comfyd.core.findings import instance_findings, memory_finding
from comfyd.doctor.scene import Scene
from comfyd.host import procfs
from comfyd.host.memory import available_bytes
from comfyd.host.sockets import holders, listening
from comfyd.model.finding import Finding


def instances(scene: Scene) -> Iterable[Finding]:
    """Why each wanted one is not ready."""
    if scene.asked:
        yield from instance_findings(scene.status, _ages(scene))
        return
    running = {key: pid for pid, key in scene.ours.items()}
    for one in scene.status["instances"]:
        if one["key"] in running:
            message = f"pid {running[one['key']]} runs on port {one['port']} without a daemon"
            yield Finding(name="instance", subject=one["name"], level="ok", message=message)
        elif any(c["reason"] == "start_due" for c in one["conditions"]):
            message = "it does not run: no daemon runs that would start it"
            yield Finding(
                name="instance", subject=one["name"], level="warning", message=message, hint="`comfyd run` starts it"
            )
        else:
            yield from instance_findings({"instances": [one]}, {})


def _ages(scene: Scene) -> dict[str, float]:
    """Key -> seconds in its state, by the daemon's clock."""
    now = datetime.fromisoformat(str(scene.status["time"]))
    known = ((one["key"], one.get("since")) for one in scene.status.get("instances", []))
    return {key: (now - datetime.fromisoformat(since)).total_seconds() for key, since in known if since}


def processes(scene: Scene) -> Iterable[Finding]:
    """What runs of ours, recorded or not."""
    for pid in scene.stray:
        message = f"process {pid} carries comfyd's tag but is in no record: {procfs.command_line(pid)[:200]}"
        hint = f"comfyd leaves it alone; `kill {pid}` ends it if nobody needs it"
        yield Finding(name="process", subject=str(pid), level="warning", message=message, hint=hint)
    if scene.ours and not scene.asked and scene.daemon_pid is None:
        message = f"{len(scene.ours)} processes run on without a daemon: {_listed(scene.ours)}"
        hint = "`comfyd run` adopts them as they are"
        yield Finding(name="process", level="warning", message=message, hint=hint)
    elif not scene.stray or scene.ours:
        message = f"{len(scene.ours)} processes: {_listed(scene.ours)}" if scene.ours else "none of ours runs"
        yield Finding(name="process", level="ok", message=message)


def _listed(ours: Mapping[int, str]) -> str:
    pairs = sorted(ours.items(), key=lambda one: one[1])
    return ", ".join(f"{key} (pid {pid})" for pid, key in pairs[:20]) + (", ..." if len(pairs) > 20 else "")


def ports(scene: Scene) -> Iterable[Finding]:
    """The port of every process, and the API's where no daemon answers: who listens there."""
    owner = procfs.owner_tag(scene.paths.state_dir)
    wanted = {w.spec.port: w for w in scene.wished.processes if w.spec.port is not None}
    fine: list[str] = []
    looked_at = [*wanted, *(() if scene.asked else (scene.settings.port,))]
    for holder in holders(looked_at, listening()):
        wish = wanted.get(holder.port)
        who = f"process {holder.pid} ({holder.name})" if holder.pid else "a process that cannot be seen from here"
        ours = holder.pid and (procfs.owner_of(holder.pid) == owner or holder.pid in scene.ours)
        if ours or (wish is None and holder.pid == scene.daemon_pid and holder.pid):
            fine.append(f"{holder.port} {wish.key if wish else 'API'} (pid {holder.pid})")
            continue
        what = f"wanted by {wish.key}" if wish is not None else "the API's own"
        message = f"{who} listens, which comfyd did not start; the port is {what}"
        hint = "end it, or choose another port" + ("" if wish is not None else " (COMFYD_PORT)")
        level = "error" if wish is None or wish.run else "warning"
        yield Finding.model_validate(
            {"name": "port", "subject": str(holder.port), "level": level, "message": message, "hint": hint}
        )
    text = ", ".join(fine[:20]) or "nobody listens on them"
    yield Finding(name="port", level="ok", message=f"{len(looked_at)} ports: {text}")


def memory(scene: Scene) -> Iterable[Finding]:
    """How much is left, and whose last run ended for lack of it."""
    ended = [str(one.get("name")) for one in scene.status.get("instances", []) if _lacked_memory(one)]
    yield memory_finding(available_bytes(), ended)


def _lacked_memory(one: dict[str, object]) -> bool:
    last = one.get("last_exit")
    if not isinstance(last, dict) or last.get("asked") or one.get("ready"):
        return False
    lines = "\n".join(str(line) for line in last.get("last_lines", [])).lower()
    return bool(last.get("oom")) or "out of memory" in lines or "outofmemoryerror" in lines
