"""The questions plan() asks before a start or restart: how the last run ended, the environment, the port."""

from collections.abc import Mapping

from comfyd.core.backoff import SHORTAGE_RETRY_S, crash_delay_s
from comfyd.core.exits import exit_hint, exit_reason, exit_text
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ObservedEnvironment, ObservedProcess, ObservedState
from comfyd.model.process import DesiredProcess

EDITS_QUIET_S, JUST_RESTARTED_S = 0.5, 5.0
EDITS_ARRIVE = "edits_arriving"


def exit_hold(wish: DesiredProcess, seen: ObservedProcess | None) -> Condition | None:
    """Whether the restart policy forbids a start after the last exit (None = it does not)."""
    last = seen.last_exit if seen else None
    if last is None or last.asked or last.fingerprint != wish.fingerprint or wish.restart_policy == "always":
        return None
    if last.short:  # it never ran
        return None
    clean = last.cause is None and (last.code == 0 or last.signal in ("SIGTERM", "SIGINT"))
    if wish.restart_policy == "on_failure" and not clean:
        return None
    message = f"ended ({exit_text(last)}) and its restart policy is {wish.restart_policy}"
    hint = "`comfyd start` runs it again" if clean else f"{exit_hint(last)}; `comfyd start` runs it again"
    return Condition("stopped" if clean else "failed", "ended", message, hint, last.wall)


def backoff_hold(
    wish: DesiredProcess, seen: ObservedProcess | None, mono: float
) -> tuple[Condition, float] | tuple[None, None]:
    """Whether the next try has to wait after the last exit, and until when (mono seconds)."""
    last = seen.last_exit if seen else None
    if seen is None or last is None or last.asked or last.fingerprint != wish.fingerprint:
        return None, None
    again = last.at + (SHORTAGE_RETRY_S if last.short else crash_delay_s(seen.crashes, wish.key))
    if mono >= again:
        return None, None
    times = f"ended {seen.crashes} times in a row" if seen.crashes > 1 and not last.short else "ended"
    message = f"{times} ({exit_text(last)}), next start in {again - mono:.0f} s"
    return Condition("backoff", exit_reason(last), message, exit_hint(last), last.wall), again


def environment_hold(wish: DesiredProcess, seen: ObservedEnvironment | None) -> Condition | None:
    """Whether the instance has to wait for its environment."""
    if wish.environment is None or (seen is not None and seen.installed):
        return None
    name = wish.environment
    if seen is None or seen.state == "absent":
        hint = f"its install begins by itself; `comfyd env list` shows {name}"
        return Condition("waiting_env", "not_installed", f"environment {name} is not installed yet", hint)
    if seen.state == "installing":
        step = next((s for s in seen.steps if s.state == "running"), None)
        began = next((s.started_at for s in seen.steps if s.started_at is not None), None)
        message = f"environment {name} is being installed" + (f": {step.name}" if step else "")
        hint = f"wait; {seen.log or 'the install log'} tells what it does"
        if step is not None and step.name == "nodes_and_models":
            hint += "; SKIP_MODEL_DOWNLOAD=true leaves models out"
        return Condition("waiting_env", "installing", message, hint, began)
    cause = f": {seen.condition.message}" if seen.condition else ""
    if seen.state == "conflict":
        hint = f"move the directory ComfyUI-{name} out of the way or repair it"
        since = seen.condition.since if seen.condition else None
        return Condition(
            "conflict", "environment_conflict", f"environment {name} cannot be adopted{cause}", hint, since
        )
    hint = f"read {seen.log or 'the install log'}; `comfyd env install {name}` tries again at once"
    since = seen.condition.since if seen.condition else None
    return Condition("waiting_env", "install_failed", f"environment {name} failed to install{cause}", hint, since)


def install_backoff(seen: ObservedEnvironment, left_s: float) -> Condition:
    """When a failed install is tried again."""
    times = f"{seen.failures} times" if seen.failures > 1 else "once"
    message = f"install failed {times}, next try in {left_s:.0f} s"
    hint = f"read {seen.log or 'the install log'}; `comfyd env install {seen.name}` tries again at once"
    since = seen.condition.since if seen.condition else None
    return Condition("backoff", "install_failed", message, hint, since)


def no_build_script(name: str, *, installed: bool = False) -> Condition:
    """Why an environment cannot be built: one that is not installed holds its instances, another one goes on."""
    if installed:
        message = f"environment {name} changed, but there is no build/{name}/install.sh to build it anew"
        return Condition(
            "build_missing", "no_build_script", message, f"bring build/{name} back; what is installed goes on"
        )
    message = f"environment {name} is not installed and there is no build/{name}/install.sh"
    return Condition("waiting_env", "no_build_script", message, f"add build/{name}/install.sh or correct `environment`")


def port_hold(wish: DesiredProcess, taken: Mapping[int, str], observed: ObservedState) -> Condition | None:
    """Whether the port is held: by a process of ours (taken: port -> key) or by somebody else."""
    port = wish.spec.port
    if port is None:
        return None
    owner = taken.get(port)
    if owner is not None:
        hint = f"it starts once {owner} has ended; if {owner} is to stay, give this one another port"
        return Condition("blocked", "port_of_instance", f"port {port} is still used by {owner}", hint)
    holder = next((h for h in observed.ports if h.port == port), None)
    if holder is None:
        return None
    if holder.pid:
        who = f"process {holder.pid} ({holder.name}), which comfyd did not start"
        hint = "end it or give this instance another port; it starts by itself once the port is free"
    else:
        who = "a process that cannot be seen from here"
        hint = f"`lsof -i :{port}` as root or outside of the container shows it; or give this instance another port"
    return Condition("blocked", "port_in_use", f"port {port} is held by {who}", hint)


def turn_hold(startup_delay_s: float) -> Condition:
    message = f"startup_delay leaves {startup_delay_s:g} s between two starts"
    return Condition("waiting_turn", "startup_delay", message, "wait; a smaller `startup_delay` starts them faster")


def edit_hold(seen: ObservedProcess, edited_at: float | None, now: Now) -> tuple[Condition, float] | None:
    """Whether a restart waits, and until when: one that was just restarted is not restarted again in the midst of a
    flood of edits. The first edit and the last one are never kept waiting for long."""
    last = seen.last_exit
    if edited_at is None or last is None or not last.asked or now.mono - last.at >= JUST_RESTARTED_S:
        return None
    quiet_at = edited_at + EDITS_QUIET_S
    if now.mono >= quiet_at:
        return None
    message = "its settings changed again; it is restarted when the edits have come to rest"
    return Condition("waiting_turn", EDITS_ARRIVE, message, "wait; it is restarted once"), quiet_at


def why_start(wish: DesiredProcess, seen: ObservedProcess | None) -> str:
    if seen is None or seen.last_exit is None:
        return "wanted and not running"
    if seen.last_exit.asked or seen.last_exit.fingerprint != wish.fingerprint:
        return "wanted again"
    return f"ended: {seen.last_exit.text()}"
