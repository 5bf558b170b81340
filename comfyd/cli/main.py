"""The program `comfyd`: finds the verb and imports only that verb's file (start time counts)."""

import importlib
import os
import sys
from argparse import REMAINDER, Namespace
from collections.abc import Mapping, Sequence

from comfyd.cli.verb import USAGE, Entry, Parser, Session, entries, run, version_text
from comfyd.signals import hold_signals

VERBS: Mapping[str, tuple[str, str]] = {
    "run": ("local", "run the daemon in the foreground"),
    "plan": ("local", "show what would be installed, started and stopped, and why the rest waits"),
    "validate": ("local", "check the files as the daemon would"),
    "status": ("status", "show every instance and why it is not ready"),
    "start": ("instances", "start instances and wait until they are ready"),
    "stop": ("instances", "stop instances and keep them stopped"),
    "restart": ("instances", "restart instances"),
    "logs": ("instances", "print or follow the log of an instance"),
    "task": ("tasks", "submit, list, show, cancel, retry or delete tasks; dead ones"),
    "queue": ("queue", "pause or resume the queue"),
    "overrides": ("overrides", "list or clear what was asked for over the files"),
    "env": ("environments", "list or install environments"),
    "reload": ("status", "read the files again now"),
    "health": ("status", "ask whether the daemon answers"),
    "doctor": ("doctor", "say what is wrong with it, its files and this machine; --bundle for a bug report"),
    "version": ("status", "print the version"),
}
ABOUT = """Keep the right ComfyUI instances alive on this machine.

exit codes: 0 done, 1 failed, 2 usage, 3 not running or degraded (status), 4 timed out waiting,
69 daemon not reachable, 75 lock held, 78 bad configuration, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code of the verb."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _main(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    sys.exit(code)


def _main(argv: list[str]) -> int:
    top, given = _step("comfyd", {name: about for name, (_, about) in VERBS.items()}, argv, Namespace(), ABOUT)
    if top == "run":
        hold_signals()  # what comes while the daemon is still being imported is heeded once it can be
    importlib.import_module(f"comfyd.cli.{VERBS[top][0]}")
    found = entries(top)
    if top in found:
        return _leaf(found[top], f"comfyd {top}", given)
    subs = {name.removeprefix(f"{top} "): entry for name, entry in found.items()}
    shorts = {name: entry.about.split("\n")[0] for name, entry in subs.items()}
    sub, given = _step(f"comfyd {top}", shorts, given.rest, given, VERBS[top][1])
    return _leaf(subs[sub], f"comfyd {top} {sub}", given)


def _step(prog: str, names: Mapping[str, str], argv: list[str], given: Namespace, about: str) -> tuple[str, Namespace]:
    """One level of words: common options, then the name of a command; `rest` is left for the next level."""
    width = max(map(len, names)) + 2
    listed = "commands:\n" + "\n".join(f"  {name:<{width}}{text}" for name, text in names.items())
    parser = Parser(prog, about, epilog=listed, usage=f"{prog} [options] COMMAND ...")
    parser.add_common()
    parser.add_argument("--version", action="version", version=version_text())
    parser.add_argument("name", metavar="COMMAND", help="one of those below; each takes -h")
    parser.add_argument("rest", nargs=REMAINDER, metavar="...", help="its own arguments")
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(USAGE)
    found = parser.parse_args(argv, given)
    if found.name not in names:
        parser.unknown(found.name, list(names))
    return found.name, found


def _leaf(entry: Entry, prog: str, given: Namespace) -> int:
    parser = Parser(prog, entry.about)
    for flags, options in entry.arguments:
        parser.add_argument(*flags, **options)
    parser.add_common()
    common = Namespace(**{k: v for k, v in vars(given).items() if k not in ("name", "rest")})
    # Intermixed parsing loses what stands behind `--`.
    parse = parser.parse_args if "--" in given.rest else parser.parse_intermixed_args
    values = vars(parse(given.rest, common))
    session = Session(values.pop("root", None), values.pop("url", None), values.pop("as_json", False))
    return run(entry.function, session, values)
