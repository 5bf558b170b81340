"""`doctor`: what is wrong with comfyd, its files, its processes and this machine; and the file for a bug report."""

import os
import sys
from pathlib import Path

from comfyd.cli.local import settings_of
from comfyd.cli.text import clean, print_json, say
from comfyd.cli.verb import FAILED, USAGE, Failure, Session, argument, verb

ANSWER_S = 10.0
"""A daemon that takes longer is a finding, not something to wait for."""
COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m"}


@verb("doctor", argument("--bundle", metavar="FILE", help="write FILE.tar.gz for a bug report, secrets masked"))
def doctor(session: Session, bundle: str | None) -> int:
    """Look for what is wrong, with or without a daemon. Exit code 1 if anything is (warnings are not)."""
    file = _target(bundle) if bundle is not None else None
    settings = settings_of(session)
    from comfyd.doctor.examine import examine
    from comfyd.doctor.text import lines_of, verdict

    with session.new_client(timeout=ANSWER_S) as client:
        diagnosis, scene = examine(settings, client)
    members: tuple[str, ...] = ()
    if file is not None:
        from comfyd.doctor.bundle import write_bundle

        try:
            members = write_bundle(file, diagnosis, scene)
        except OSError as error:
            raise Failure(f"{file} cannot be written: {error.strerror}", code="bundle_not_written") from None
    if session.as_json:
        counts = {level: diagnosis.count(level) for level in ("error", "warning")}
        written = {"bundle": str(file), "members": list(members)} if file is not None else {}
        print_json({**diagnosis.model_dump(mode="json"), "errors": counts["error"], "warnings": counts["warning"],
                    **written})  # fmt: skip
    else:
        for line in lines_of(diagnosis):
            print(_coloured(clean(line)))
    if file is not None:
        say(f"written: {clean(file)} ({len(members)} files; look through it before you give it away)")
    say(verdict(diagnosis))
    return FAILED if diagnosis.count("error") else 0


def _target(word: str) -> Path:
    path = Path(word)
    if path.is_dir():
        raise Failure(f"{word} is a folder: name a file, as report.tar.gz", USAGE, "usage")
    if not path.absolute().parent.is_dir():
        raise Failure(f"the folder of {word} does not exist", USAGE, "usage")
    return path.absolute()


def _coloured(line: str) -> str:
    colour = COLOURS.get(line.split(" ", 1)[0])
    if colour is None or not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return line
    level, rest = line.split(" ", 1)
    return f"{colour}{level}\x1b[0m {rest}"
