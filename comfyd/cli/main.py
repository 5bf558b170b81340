"""The program `comfyd`: finds the verb and imports only that verb's file."""

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from comfyd.cli.verb import Json, Root, Url, version_text

VERBS = {
    "run": "local",
    "plan": "local",
    "validate": "local",
    "status": "status",
    "health": "status",
    "start": "instances",
    "stop": "instances",
    "restart": "instances",
    "logs": "instances",
    "task": "tasks",
    "overrides": "overrides",
    "env": "environments",
    "reload": "status",
    "version": "status",
}


class LazyGroup(TyperGroup):
    """Knows every verb by name and loads a file only when its verb is asked for (start time counts)."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            self.commands.update({verb: self._load(verb) for verb in VERBS if verb not in self.commands})
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = self._load(cmd_name)
        return self.commands[cmd_name]

    @staticmethod
    def _load(verb: str) -> Any:
        module = importlib.import_module(f"comfyd.cli.{VERBS[verb]}")
        return module.commands()[verb]


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(version_text())
        raise typer.Exit


@app.callback()
def comfyd(
    ctx: typer.Context,
    root: Root = None,
    url: Url = None,
    as_json: Json = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Keep the right ComfyUI instances alive on this machine.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not running or degraded (status), 4 timed out waiting,
    69 daemon not reachable, 75 lock held, 78 bad configuration, 130 interrupted.
    """
    ctx.obj = {"root": root, "url": url, "as_json": as_json}


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="comfyd")
