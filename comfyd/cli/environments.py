"""Environments: `env list|install`."""

import time
from typing import Any

from comfyd.cli.text import clean, print_json, print_table, say, why
from comfyd.cli.verb import FAILED, SECONDS, TIMED_OUT, Failure, Session, argument, did_you_mean, verb
from comfyd.client.shapes import Install

POLL_S = 0.25
HOPELESS = frozenset({"no_build_script", "environment_invalid"})


@verb("env list")
def list_(session: Session) -> None:
    """Show every environment and what is installed."""
    rows = session.client.environments()
    if session.as_json:
        print_json({"environments": rows})
        return
    columns = ("name", "state", "generation", "port", "workflows", "reason")
    print_table(columns, [[*(e.get(c) for c in columns[:4]), _names(e), _reason(e)] for e in rows])


def _names(environment: Any) -> str:
    return ", ".join(environment.get("workflows", []))


def _reason(environment: Any) -> str:
    return why(environment.get("conditions")) or str(environment.get("install", {}).get("step") or "")


@verb(
    "env install",
    argument("name", metavar="NAME"),
    argument("--dry-run", action="store_true", help="only show how its build scripts would be rewritten"),
    argument("--wait", type=SECONDS, metavar="S", help="longest wait; 0 = only ask; default: to its end"),
)
def install(session: Session, name: str, dry_run: bool, wait: float | None) -> int:
    """Install an environment anew (a new generation; the old one stays until the new one is verified)."""
    if dry_run:
        return _preview(session, name)
    client = session.client
    known = [str(e.get("name")) for e in client.environments()]
    if name not in known:
        raise _unknown(name, known)
    before = client.install_state(name)
    client.install(name)
    after = before if wait == 0 else _follow(session, name, before, wait)
    outcome = "asked" if wait == 0 else _outcome(after, before)
    if session.as_json:
        print_json({"environment": name, "outcome": outcome, "install": after})
    else:
        _tell(name, outcome, after)
    return {"installing": TIMED_OUT, "failed": FAILED}.get(outcome, 0)


def _unknown(name: str, known: list[str]) -> Failure:
    message = f"no environment '{name}'{did_you_mean(name, known)} known: {', '.join(known) or 'none'}"
    return Failure(message, code="unknown_environment", details={"known": known})


def _preview(session: Session, name: str) -> int:
    from comfyd.cli.local import settings_of

    settings = settings_of(session)
    from comfyd import offline

    made = offline.rewrite_preview(settings, name)
    if session.as_json:
        print_json({"environment": name, "target": made.target, "diff": made.diff, "problems": list(made.problems)})
    else:
        print(clean(made.diff, lines=True), end="")
    for problem in made.problems:
        say(f"not rewritable: {clean(problem)}")
    return FAILED if made.problems else 0


def _follow(session: Session, name: str, before: Install, wait: float | None) -> Install:
    """The install once it has ended, or as it stands when the time is over."""
    deadline = None if wait is None else time.monotonic() + wait
    told = ""
    while True:
        now = session.client.install_state(name)
        step = f"{now.get('state')} {now.get('step') or ''}".strip()
        if step != told:
            told = step
            say(clean(f"{name}: {step}"))
        if _outcome(now, before) != "installing" or (deadline is not None and time.monotonic() >= deadline):
            return now
        time.sleep(POLL_S)


def _outcome(now: Install, before: Install) -> str:
    """installed | failed | installing. A try that ended before the call is not taken for its result."""
    state = now.get("state")
    if state == "conflict" or any(c.get("reason") in HOPELESS for c in now.get("conditions", [])):
        return "failed"
    if state not in ("installed", "failed") or _mark(now) == _mark(before):
        return "installing"
    # A failed rebuild leaves the environment installed: its older generation goes on.
    failed = any(c.get("type") == "install_failed" for c in now.get("conditions", []))
    return "failed" if failed else str(state)


def _mark(install: Install) -> tuple[Any, ...]:
    """What differs between two tries."""
    steps = install.get("steps") or [{}]
    return install.get("generation"), install.get("failures"), steps[0].get("started_at")


def _tell(name: str, outcome: str, after: Install) -> None:
    if outcome == "installed":
        print(f"{name}: installed, generation {after.get('generation')}")
        for condition in after.get("conditions", []):
            say(clean(f"{name}: {why([condition])}"))
    elif outcome == "failed":
        conditions = after.get("conditions") or []
        for line in after.get("last_lines") or []:
            say(clean(f"  {line}"))
        say(clean(f"{name}: failed: {why(conditions)}"))
        log = f"read {after.get('log')}" if after.get("log") else "see `comfyd env list`"
        say(clean(next((c["hint"] for c in conditions[:1] if c.get("hint")), log)))
    else:
        say(f"{name}: it goes on, see `comfyd env list`")
