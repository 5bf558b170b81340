"""Keeping tasks back: `queue pause|resume`."""

from collections.abc import Mapping
from typing import Any

from comfyd.cli.text import clean, print_json, say
from comfyd.cli.verb import Session, argument, verb

ENVIRONMENT = argument("environment", nargs="?", metavar="ENVIRONMENT", help="only this one; none = the whole queue")


@verb("queue pause", ENVIRONMENT)
def pause(session: Session, environment: str | None) -> None:
    """Hand out no more tasks; those that run go on. It stays so until `queue resume`, also over restarts."""
    _tell(session, session.client.pause_queue(environment))


@verb("queue resume", ENVIRONMENT)
def resume(session: Session, environment: str | None) -> None:
    """Hand out tasks again; without an environment every pause ends."""
    _tell(session, session.client.resume_queue(environment))


def _tell(session: Session, answer: Mapping[str, Any]) -> None:
    if session.as_json:
        print_json(answer)
    else:
        say(clean(answer.get("message")))
