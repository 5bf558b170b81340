"""Files, variables and overrides -> one wish for every process and environment.

Owns: what runs by itself, what is held whatever the observations say.
Must not: look at what runs (plan does) or know how a command line is made (resolve_process does).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from comfyd.core.config_environments import is_service
from comfyd.core.config_instances import extra_arguments
from comfyd.core.config_report import Report
from comfyd.core.memo import Memo, given_fields
from comfyd.core.overrides import Overrides, applied, in_force
from comfyd.core.resolve_process import (
    Setting,
    instance_fingerprint,
    instance_process,
    sidecar_fingerprint,
    sidecar_process,
)
from comfyd.model.base import Condition, Now
from comfyd.model.desired import DesiredState, EnvironmentSpec, InstanceSpec, Override, SidecarSpec, Want, digest
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ProcessSpec, ResolvedState
from comfyd.model.sources import MachineFacts, Variables


@dataclass(frozen=True, slots=True)
class _Wish:
    """One instance on its way. file: what the file says (None: an override alone declares it)."""

    spec: InstanceSpec
    file: InstanceSpec | None
    overridden: tuple[str, ...] = ()
    held: Condition | None = None
    run: bool = True
    why_not: Condition | None = None


def resolve(
    desired: DesiredState, overrides: Sequence[Override], variables: Variables, facts: MachineFacts, now: Now,
    memo: Memo | None = None,
) -> ResolvedState:  # fmt: skip
    """The wish for every key, sorted by key. Pure: the order of `overrides` and of the files does not matter.

    EXTRA_ARGS that cannot be used hold every instance instead of starting it without them.
    """
    memo = memo or Memo()
    asked = in_force(overrides, facts, now)
    report = Report("EXTRA_ARGS")
    extra = extra_arguments(variables, report)
    wishes, broken = _declared(desired, asked, variables)
    quiet = None if autolaunch(desired, variables) else _why_quiet(variables)
    wishes = [_with_run(wish, asked.run.get(wish.spec.key), quiet) for wish in wishes]
    wishes = [_with_conflict(wish, wishes) for wish in wishes]
    setting = Setting(
        desired.settings, variables, facts, extra, _first_of(wishes), Counter(i.environment for i in desired.instances)
    )
    shared = (desired.settings, variables, extra, facts.paths, facts.tcmalloc)
    memo.begin(shared, {wish.spec.key for wish in wishes})
    processes = [_instance(wish, desired.environment(wish.spec.environment), setting, asked, memo) for wish in wishes]
    if report.failed:
        hint = report.issues[0].hint or "correct the variable EXTRA_ARGS and start the daemon again"
        cause = Condition("held", "bad_extra_args", f"EXTRA_ARGS: {report.issues[0].message}", hint)
        processes = [p.model_copy(update={"held": p.held or cause}) for p in processes]
    services = {one.key for one in desired.services}
    processes += [_sidecar(one, setting, asked) for one in desired.services]
    processes += [_broken(one, reason, setting) for one, reason in broken if one.key not in services]
    used = {p.environment for p in processes if p.run} | set(asked.install)
    return ResolvedState(
        processes=tuple(sorted(processes, key=lambda p: p.key)),
        environments=tuple(_environment(e, asked, used) for e in sorted(desired.environments, key=lambda e: e.name)),
        startup_delay=desired.settings.startup_delay,
        wake_at=asked.next_expiry,
    )


def autolaunch(desired: DesiredState, variables: Variables) -> bool:
    """Whether enabled instances run by themselves (spec section 1): COMFYUI_ENABLE_MULTI_INSTANCE wins over
    DISABLE_AUTOLAUNCH; with neither set only the unchanged stock file does not launch."""
    if variables.multi_instance:
        return True
    if variables.disable_autolaunch is not None:
        return not variables.disable_autolaunch
    return not desired.stock


def _declared(
    desired: DesiredState, asked: Overrides, variables: Variables
) -> tuple[list[_Wish], list[tuple[Override, Condition]]]:
    """Instances of the file with their overrides, those of overrides alone, and overrides that make no instance."""
    wishes: list[_Wish] = []
    broken: list[tuple[Override, Condition]] = []
    for spec in desired.instances:
        override = asked.spec.get(spec.key)
        wishes.append(_Wish(spec, spec) if override is None else _overridden(spec, override, variables))
    file_keys = {spec.key for spec in desired.instances}
    environment = desired.default_environment or variables.environment
    for key, override in sorted(asked.spec.items()):
        if key in file_keys:
            continue
        made, reason = applied(None, override, variables, {"environment": environment})
        if made is None:
            broken.append((override, reason))
        else:
            wishes.append(_Wish(made, None, tuple(sorted(override.fields))))
    return wishes, broken


def _overridden(spec: InstanceSpec, override: Override, variables: Variables) -> _Wish:
    made, reason = applied(spec, override, variables, {})
    if made is None:
        return _Wish(spec, spec, held=reason)
    return _Wish(made, spec, tuple(sorted(set(override.fields) - {"id"})))


def _why_quiet(variables: Variables) -> Condition:
    """Why nothing starts by itself: somebody said so, or the file is still the one that images ship."""
    text, hint = "instances.json is the unchanged example: nothing starts by itself", "edit it, or `comfyd start` it"
    if variables.disable_autolaunch:
        text, hint = "DISABLE_AUTOLAUNCH is set: nothing starts by itself", "`comfyd start` it"
    return Condition("stopped", "autolaunch_off", text, hint)


def _with_run(wish: _Wish, override: Override | None, quiet: Condition | None) -> _Wish:
    if override is not None and override.want is Want.UP:
        return wish
    if override is not None and override.want is Want.DOWN:
        return replace(wish, run=False, why_not=_stopped(override))
    if not wish.spec.enabled:
        return replace(wish, run=False, why_not=_disabled("the file"))
    return wish if quiet is None else replace(wish, run=False, why_not=quiet)


def _stopped(override: Override) -> Condition:
    message, hint = f"stopped by {override.by}", "`comfyd start` runs it again"
    return Condition("stopped", "stopped_by_override", message, hint, override.created_at)


def _disabled(file: str) -> Condition:
    return Condition("stopped", "disabled", f"disabled in {file}", 'set "enabled": true, or `comfyd start` it')


def _with_conflict(wish: _Wish, wishes: Iterable[_Wish]) -> _Wish:
    """An override may not take the port or name that the file gives to another instance which is to run."""
    for field in ("port", "name"):
        wanted = getattr(wish.spec, field)
        if wish.file is not None and getattr(wish.file, field) == wanted:
            continue
        for other in wishes:
            theirs = getattr(other.file, field, None)
            if other.spec.id != wish.spec.id and other.run and theirs == wanted == getattr(other.spec, field):
                text = f"the file gives {field} {wanted} to instance {other.spec.id} ({other.spec.name})"
                reason = Condition("override_conflict", f"{field}_taken", text, "clear the override or change the file")
                return replace(wish, run=False, why_not=reason, held=reason)
    return wish


def _first_of(wishes: Iterable[_Wish]) -> dict[str, int]:
    first: dict[str, int] = {}
    for wish in wishes:
        first[wish.spec.environment] = min(wish.spec.id, first.get(wish.spec.environment, wish.spec.id))
    return first


def _instance(
    wish: _Wish, environment: EnvironmentSpec | None, setting: Setting, asked: Overrides, memo: Memo
) -> DesiredProcess:
    """`inputs` names all that `_made` looks at beside what all instances share."""
    spec, output = wish.spec, _output(wish, setting)
    token, first = asked.restart_token(spec.key), setting.first_of.get(spec.environment)
    given = (given_fields(spec), given_fields(spec.probe), given_fields(environment and environment.probe))
    inputs = (wish, environment, given, output, token, first == spec.id)
    return memo.made(spec.key, inputs, lambda: _made(wish, environment, setting, output, token))


def _made(
    wish: _Wish, environment: EnvironmentSpec | None, setting: Setting, output: str, token: str | None
) -> DesiredProcess:
    spec = wish.spec
    grace_given = "drain_timeout_s" in spec.model_fields_set
    return DesiredProcess(
        key=spec.key,
        spec=instance_process(spec, environment, setting, output),
        fingerprint=instance_fingerprint(spec, environment, setting, token),
        run=wish.run,
        why_not=wish.why_not,
        held=wish.held or _environment_hold(spec, environment),
        environment=spec.environment,
        restart_policy=spec.restart.policy,
        gpus=() if spec.gpus == "none" else spec.gpus,
        gpu_exclusive=spec.gpu_exclusive,
        drain_timeout_s=spec.drain_timeout_s if grace_given else setting.variables.drain_timeout_s,
        instance=spec,
        origin="file" if wish.file is not None else "override",
        overridden=wish.overridden,
        output=output,
    )


def _output(wish: _Wish, setting: Setting) -> str:
    """Recorded at the first start and never computed again; until then it depends on siblings in the file."""
    spec, file = wish.spec, wish.file
    recorded = setting.facts.outputs.get(spec.key)
    if recorded is not None:
        return recorded
    itself = file is not None and file.environment == spec.environment
    return str(spec.id) if setting.in_file.get(spec.environment, 0) > itself else ""


def _environment_hold(spec: InstanceSpec, environment: EnvironmentSpec | None) -> Condition | None:
    name = spec.environment
    if environment is None:
        hint = f"create config/environments/{name}/config.json or correct `environment`"
        return Condition("held", "environment_unknown", f"environment {name} has no config folder", hint)
    if environment.issue is not None:
        return environment.issue
    if is_service(environment) and not (environment.command or environment.startup_script):
        text = f"environment {name} is a service without command or startup_script"
        return Condition("held", "no_command", text, "add command to its config.json")
    return None


def _sidecar(spec: SidecarSpec, setting: Setting, asked: Overrides) -> DesiredProcess:
    override = asked.run.get(spec.key)
    run = spec.enabled if override is None or override.want is None else override.want is Want.UP
    off = _stopped(override) if override is not None and override.want else _disabled("services.json")
    return DesiredProcess(
        key=spec.key,
        spec=sidecar_process(spec, setting),
        fingerprint=sidecar_fingerprint(spec, asked.restart_token(spec.key)),
        run=run,
        why_not=None if run else off,
        gpus=(),
        origin="services",
    )


def _broken(override: Override, reason: Condition, setting: Setting) -> DesiredProcess:
    """An override that describes no instance: shown with its reason, never started, and left alone if it runs."""
    log = setting.log(override.key.replace("/", "_"))
    spec = ProcessSpec(key=override.key, argv=(), cwd=str(setting.facts.paths.root), log=log)
    return DesiredProcess(key=override.key, spec=spec, fingerprint="", run=True, held=reason, origin="override")


def _environment(spec: EnvironmentSpec, asked: Overrides, used: set[str | None]) -> DesiredEnvironment:
    fingerprint = spec.fingerprint
    if spec.name in asked.install:
        fingerprint = digest([fingerprint, asked.install[spec.name].token])
    return DesiredEnvironment(name=spec.name, spec=spec, fingerprint=fingerprint, wanted=spec.name in used)
