"""What was read from disk and from the environment before anything is decided. Plain data."""

from dataclasses import dataclass, field
from typing import Literal

from comfyd.model.desired import ConfigIssue, DesiredState
from comfyd.model.paths import Paths


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Bytes of one file as read, or the reason why there are none.

    problem: None | missing | unreadable | not_a_file | too_large | bad_name (of its folder);
    detail is one sentence for people. mounted: the file is a mount of its own (a container's single-file volume);
    replaced: another file has taken its name on the outside, so that this one is never going to change.
    """

    path: str
    data: bytes | None
    problem: str | None = None
    detail: str = ""
    inode: int | None = None
    mounted: bool = False
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class EnvironmentFolder:
    """config/environments/<name> and build/<name>. Hashes are content hashes (hex), None if absent."""

    name: str
    config: SourceFile
    build_hash: str | None = None
    has_install: bool = False
    fix_hash: str | None = None
    workflows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """One reading of everything that is watched. services: None if there is no such file.

    lost: why the folder of all environments could not be listed (one sentence), which is not the same as an empty one.
    """

    instances: SourceFile
    environments: tuple[EnvironmentFolder, ...] = ()
    services: SourceFile | None = None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Variables:
    """The legacy variables and the settings that the meaning of the files depends on."""

    environment: str = "comm"
    base_port: int = 3001
    disable_autolaunch: bool | None = None
    multi_instance: bool = False
    instances: int | None = None
    extra_args: str = ""
    api_port: int = 8001
    instance_listen: str = "127.0.0.1"
    startup_deadline_s: float = 600.0
    stop_grace_s: float = 15.0
    drain_timeout_s: float = 600.0
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ParseResult:
    """desired: None if the revision is refused (then `issues` holds every error), else the accepted state.

    state: ok | missing (no instances.json) | refused.
    """

    desired: DesiredState | None
    issues: tuple[ConfigIssue, ...]
    state: Literal["ok", "missing", "refused"]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What resolve() needs to know of this machine.

    tcmalloc: path to preload or None. container: identity that scoped overrides are compared with.
    outputs: process key -> recorded output sub-folder ("" = the folder itself), from NodeStore facts `output/<key>`.
    """

    paths: Paths
    tcmalloc: str | None = None
    container: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
