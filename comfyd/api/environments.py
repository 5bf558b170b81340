"""Environments as configured and installed, and the wish for a fresh install."""

import asyncio
from typing import Literal

from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op, under_api
from comfyd.api.views import find_environment, status_view
from comfyd.api.wire import Answer
from comfyd.api.wishes import fresh, write
from comfyd.host.follow import tail_lines
from comfyd.model.view import EnvironmentView, InstallView

SHOWN_LOG_LINES = 50


class EnvironmentsAnswer(Answer):
    environments: tuple[EnvironmentView, ...]


class InstallAnswer(Answer):
    """install: the latest install; tail: the last lines of its log."""

    environment: str
    installed: bool
    install: InstallView
    tail: tuple[str, ...] = ()


class InstallAccepted(InstallAnswer):
    status: Literal["accepted"] = "accepted"
    message: str


@op("GET", "/environments", scope="client", response=EnvironmentsAnswer, also=under_api("/environments"))
async def list_environments(call: Call[None, None]) -> EnvironmentsAnswer:
    """Every environment with its config and what is installed."""
    return EnvironmentsAnswer(environments=status_view(call.context).environments)


@op(
    "GET", "/environments/{env}", scope="client", response=EnvironmentView, errors=(404,),
    also=under_api("/environments/{env}"),
)  # fmt: skip
async def show_environment(call: Call[None, None]) -> EnvironmentView:
    """One environment."""
    return find_environment(status_view(call.context), call.path("env"))


@op(
    "GET", "/environments/{env}/install", scope="client", response=InstallAnswer, errors=(404,),
    also=under_api("/environments/{env}/install"),
)  # fmt: skip
async def show_install(call: Call[None, None]) -> InstallAnswer:
    """The latest install: steps, progress and the end of its log."""
    found = find_environment(status_view(call.context), call.path("env"))
    tail = await asyncio.to_thread(_log_end, call.context, found.name)
    return InstallAnswer(environment=found.name, installed=found.installed, install=found.install, tail=tail)


@op(
    "POST", "/environments/{env}/install", scope="admin", response=InstallAccepted, status=202, errors=(404,),
    also=under_api("/environments/{env}/install"),
)  # fmt: skip
async def install_environment(call: Call[None, None]) -> InstallAccepted:
    """Ask for a fresh install; it goes on by itself, GET shows its progress."""
    found = find_environment(status_view(call.context), call.path("env"))
    await write(call.context, [fresh(call.context, "install", found.name, call.caller)])
    return InstallAccepted(
        environment=found.name,
        installed=found.installed,
        install=found.install,
        message=f"Environment '{found.name}' will be installed",
    )


def _log_end(context: ApiContext, env: str) -> tuple[str, ...]:
    """The last lines of the install log; none if it cannot be read."""
    lines = tail_lines(context.paths.install_log(env), SHOWN_LOG_LINES)
    return tuple(lines.decode("utf-8", "replace").splitlines())
