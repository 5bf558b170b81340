"""A directory that stood at `ComfyUI-<env>` before us: used as it is if it can be started, never changed or replaced.

Owns: generation 0. Must not: write anything but the marker into such a tree.
"""

import anyio.to_thread

from comfyd.environments.build import Build
from comfyd.environments.failure import InstallFailed
from comfyd.environments.record import STEPS, Marker, save_marker
from comfyd.environments.steps import node_folders
from comfyd.environments.tree import Current
from comfyd.environments.variables import scrubbed, with_venv
from comfyd.environments.verify import verify
from comfyd.failpoint import failpoint
from comfyd.host.clock import wall
from comfyd.model.base import Condition


async def adopt(build: Build, here: Current) -> None:
    """Verify and mark, or fail with state `conflict`. Raises InstallFailed."""
    assert here.tree is not None
    if here.marker is not None:
        async with build.step(STEPS[0]):
            message = f"{here.tree} was adopted as it is, so a changed config cannot be built in its place"
            raise InstallFailed(
                message, reason="adopted_directory", hint=f"move {here.tree} elsewhere to have it built"
            )
    await build.save(generation=0)
    await build.skip(STEPS[:-1], "an existing directory is adopted as it is")
    async with build.step(STEPS[-1]):
        env = with_venv(scrubbed(build.environ, here.tree), here.tree)
        try:
            build.flags = await verify(build.spec, here.tree, env, build.uuid)
        except InstallFailed as error:
            message = f"{here.tree} was there before and cannot be started: {error.message}"
            hint = f"repair it, or move it elsewhere to have {build.spec.name} built"
            raise InstallFailed(message, reason=error.reason, hint=hint, state="conflict") from error
        await anyio.to_thread.run_sync(_mark, build, here)
        failpoint("marker_written")


def _mark(build: Build, here: Current) -> None:
    assert here.tree is not None
    message = f"{here.tree} was there before and is used as it is"
    hint = f"nothing; move it elsewhere to have {build.spec.name} built by comfyd"
    conditions = [Condition("adopted", "existing_directory", message, hint, wall())]
    models, shared = here.tree / "models", build.paths.models_dir
    if models.resolve() != shared.resolve():
        message = f"{models} is not a link to {shared}, so shared models are not seen there"
        conditions.append(
            Condition("models_not_shared", "adopted", message, f"move its files to {shared}, link it", wall())
        )
    marker = Marker(
        environment=build.spec.name, generation=0, fingerprint=build.fingerprint, flags=tuple(sorted(build.flags)),
        models_fingerprint="" if build.spec.models else build.spec.models_fingerprint, adopted=True,
        shipped=node_folders(here.tree), conditions=tuple(conditions), installed_at=wall(),
    )  # fmt: skip
    save_marker(here.tree, marker)
