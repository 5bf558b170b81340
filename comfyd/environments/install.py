"""One install from the lock to the flipped link: the order of the steps and what a failure leaves behind.

Owns: that nothing half-built is ever called installed. Must not: publish (runner.py does) or know who asked.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from comfyd.core.since import carried
from comfyd.environments import steps
from comfyd.environments.adopt import adopt
from comfyd.environments.build import Build, Report
from comfyd.environments.failure import InstallFailed
from comfyd.environments.log import log_size
from comfyd.environments.models import ModelFetcher
from comfyd.environments.record import STEPS, InstallRecord, Marker, load_record, save_marker
from comfyd.environments.scripts import preview_folder, unified_diff
from comfyd.environments.tree import Current, current, flip, in_the_way, next_generation, prune, set_aside
from comfyd.errors import LockHeldError
from comfyd.failpoint import failpoint
from comfyd.host.clock import boot_id, mono, wall
from comfyd.host.files import exclusive_lock
from comfyd.host.rotate import LIMIT_BYTES, rotate
from comfyd.logs import get_logger
from comfyd.model.base import Condition
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.paths import Paths
from comfyd.settings import Settings

LOCK_RECHECK_S = 1.0
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """Where installs happen and with which variables. fetcher: shared by all installs of this process."""

    paths: Paths
    settings: Settings
    environ: Mapping[str, str]
    fetcher: ModelFetcher


async def install_environment(
    spec: EnvironmentSpec, fingerprint: str, paths: Paths, settings: Settings, report: Report
) -> InstallRecord:
    """Install without a daemon. Returns the record (`state` says how it ended).

    Raises LockHeldError if another process is installing this environment.
    """
    environ = dict(os.environ)
    fetcher = ModelFetcher(paths, settings, environ)
    try:
        return await install(Site(paths, settings, environ, fetcher), spec, fingerprint, report)
    finally:
        await fetcher.aclose()


def rewrite_preview(paths: Paths, env: str) -> str:
    """What step 4 would change in build/<env>, as a unified diff (`--dry-run`); problems stand above it. Blocking."""
    tree = paths.generation(env, next_generation(paths, env))
    changed, problems = preview_folder(paths.build_dir / env, tree)
    return "".join(f"# {problem}\n" for problem in problems) + unified_diff(changed)


def env_lock(paths: Paths, env: str) -> AbstractContextManager[None]:
    """Held while anything below this environment's trees changes, across processes."""
    return exclusive_lock(paths.state_dir / "locks" / f"env-{env}.lock", f"the install of {env}")


async def install(
    site: Site, spec: EnvironmentSpec, fingerprint: str, report: Report, *, wait: bool = False
) -> InstallRecord:
    """Bring one environment to `fingerprint`. wait: wait for another process's install instead of LockHeldError."""
    with ExitStack() as stack:
        await _lock(stack, site.paths, spec.name, wait=wait)
        build = await anyio.to_thread.run_sync(_begin, site, spec, fingerprint, report)
        try:
            await _bring(site, build)
        except InstallFailed as error:
            await _failed(build, error)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            await _failed(build, InstallFailed(f"{error.strerror or error}{where}", reason="system_error"))
        except Exception as error:
            log.exception("install failed by a fault of comfyd", environment=spec.name)
            await _failed(build, InstallFailed(f"{type(error).__name__}: {error}", reason="internal"))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _interrupted(build)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_clean_scratch, build)
        return build.record


async def _lock(stack: ExitStack, paths: Paths, env: str, *, wait: bool) -> None:
    while True:
        try:
            stack.enter_context(env_lock(paths, env))
            return
        except LockHeldError:
            if not wait:
                raise
            await anyio.sleep(LOCK_RECHECK_S)


def _begin(site: Site, spec: EnvironmentSpec, fingerprint: str, report: Report) -> Build:
    before = load_record(site.paths, spec.name)
    record = InstallRecord(
        environment=spec.name, fingerprint=fingerprint, started_at=wall(), boot_id=boot_id(),
        log=str(site.paths.install_log(spec.name)), progress=0.0,
    )  # fmt: skip
    if before is not None:
        kept = ("failures", "failed_fingerprint", "failed_mono", "models_failed", "condition", "last_lines")
        record = record.model_copy(update={name: getattr(before, name) for name in kept})
    for folder in (site.paths.workspace, site.paths.log_dir):
        folder.mkdir(parents=True, exist_ok=True)
    site.paths.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_log_small(site.paths.install_log(spec.name))
    build = Build(spec, fingerprint, site.paths, site.settings, site.environ, report, record)
    build.record = record.model_copy(update={"uuid": build.uuid})
    return build


def _keep_log_small(path: Path) -> None:
    """Between two tries, when nobody writes: scripts may print much and are tried again and again."""
    if log_size(path) > LIMIT_BYTES:
        rotate(path)


async def _bring(site: Site, build: Build) -> None:
    here = await anyio.to_thread.run_sync(current, build.paths, build.spec.name)
    if here.kind == "blocked":
        raise in_the_way(build.paths, build.spec.name)
    if here.marker is not None and here.marker.fingerprint == build.fingerprint:
        await _only_models(site, build, here)
    elif here.kind == "foreign":
        await adopt(build, here)
    else:
        await _fresh(site, build)
    await _done(build)


async def _only_models(site: Site, build: Build, here: Current) -> None:
    """Installed already: at most models are missing, which need no new generation."""
    assert here.tree is not None
    assert here.marker is not None
    await build.save(generation=here.generation)
    await build.skip((name for name in STEPS if name != "nodes_and_models"), "installed already")
    async with build.step("nodes_and_models"):
        await steps.fetch_models(build, site.fetcher)
    build.conditions = [c for c in here.marker.conditions if c.type not in ("model_failed", "model_unchecked")]
    await anyio.to_thread.run_sync(save_marker, here.tree, _with_models(build, here.marker))


def _with_models(build: Build, marker: Marker) -> Marker:
    failed = any(c.type == "model_failed" for c in build.model_conditions)
    return marker.model_copy(
        update={
            "models_fingerprint": "" if failed else build.spec.models_fingerprint,
            "models_skipped": build.settings.skip_model_download and bool(build.spec.models),
            "conditions": carried((*build.conditions, *build.model_conditions), marker.conditions, wall()),
        }
    )


async def _fresh(site: Site, build: Build) -> None:
    build.generation = await anyio.to_thread.run_sync(next_generation, build.paths, build.spec.name)
    await build.save(generation=build.generation)
    actions = (
        steps.validate, steps.find, steps.copy, steps.rewrite, steps.run_script, steps.link_models,
        partial(steps.nodes_and_models, fetcher=site.fetcher), steps.fix,
    )  # fmt: skip
    for name, action in zip(STEPS[:-1], actions, strict=True):
        async with build.step(name):
            await action(build)  # type: ignore[operator]
    async with build.step(STEPS[-1]):
        await steps.check(build)
        await anyio.to_thread.run_sync(_publish_tree, build)


def _publish_tree(build: Build) -> None:
    """Marker, then link: in this order, so that the link never names a tree without a marker."""
    marker = Marker(
        environment=build.spec.name, generation=build.generation, fingerprint=build.fingerprint,
        flags=tuple(sorted(build.flags)), nodes=build.nodes, shipped=build.shipped, carried=build.carried,
        fix_hash=build.spec.fix_hash, installed_at=wall(),
    )  # fmt: skip
    save_marker(build.tree, _with_models(build, marker))
    failpoint("marker_written")
    flip(build.paths, build.spec.name, build.generation)
    failpoint("link_flipped")
    prune(build.paths, build.spec.name)


async def _done(build: Build) -> None:
    """Installed. Models that could not be had count as a failed try of the models alone."""
    again: dict[str, object] = {"failures": 0, "failed_fingerprint": "", "failed_mono": None, "models_failed": ""}
    if any(c.type == "model_failed" for c in build.model_conditions):
        again = {
            "failures": build.record.failures + 1, "failed_fingerprint": build.fingerprint, "failed_mono": mono(),
            "models_failed": build.spec.models_fingerprint,
        }  # fmt: skip
    end = {"state": "done", "finished_at": wall(), "progress": 1.0, "process": None, "condition": None}
    await build.save(**end, **again, last_lines=())


async def _failed(build: Build, error: InstallFailed) -> None:
    hint = error.hint or f"read {build.log}; an edit or `comfyd env install {build.spec.name}` tries again at once"
    await anyio.to_thread.run_sync(_put_aside, build)
    same = build.record.failed_fingerprint == build.fingerprint
    await build.save(
        state="conflict" if error.state == "conflict" else "failed", finished_at=wall(), process=None,
        failures=build.record.failures + 1 if same else 1, failed_fingerprint=build.fingerprint, failed_mono=mono(),
        condition=Condition("install_failed", error.reason, error.message, hint, wall()), progress=None,
        last_lines=error.last_lines,
    )  # fmt: skip


async def _interrupted(build: Build) -> None:
    await anyio.to_thread.run_sync(_put_aside, build)
    await build.save(state="interrupted", finished_at=wall(), process=None, condition=interrupted(), progress=None)


def interrupted() -> Condition:
    """Why an install that nobody failed is not there."""
    return Condition("install_failed", "interrupted", "the install was interrupted", "it is tried again", wall())


def _put_aside(build: Build) -> None:
    """Only a tree of this try, and only while the link does not name it."""
    if build.generation and current(build.paths, build.spec.name).generation != build.generation:
        set_aside(build.paths, build.spec.name, build.generation)


def _clean_scratch(build: Build) -> None:
    for folder in (build.scratch, build.scratch.with_name(build.scratch.name + ".fix")):
        shutil.rmtree(folder, ignore_errors=True)
