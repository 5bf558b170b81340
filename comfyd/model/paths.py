"""Where everything lies under one root. Pure path arithmetic; touches no disk."""

from dataclasses import dataclass
from pathlib import Path

_MOVED_PREFIXES = ("/workspace", "/ComfyUI", "/build", "/config")


@dataclass(frozen=True, slots=True)
class Paths:
    """The layout of spec section 1. All paths are absolute."""

    root: Path
    instances_file: Path
    services_file: Path
    environments_dir: Path
    build_dir: Path
    baked_tree: Path
    workspace: Path
    models_dir: Path
    data_dir: Path
    log_dir: Path
    state_dir: Path

    @classmethod
    def under(cls, root: Path, **given: Path | None) -> "Paths":
        """The layout below `root`; every field may be given by itself (None = default)."""
        workspace = given.get("workspace") or root / "workspace"
        config = root / "config"
        defaults = {
            "instances_file": root / "instances.json",
            "services_file": config / "services.json",
            "environments_dir": config / "environments",
            "build_dir": root / "build",
            "baked_tree": root / "ComfyUI",
            "workspace": workspace,
            "models_dir": workspace / "shared-models",
            "data_dir": workspace / "data",
            "log_dir": workspace / "logs",
            "state_dir": workspace / ".comfyd",
        }
        chosen = {name: given.get(name) or default for name, default in defaults.items()}
        return cls(root=root, **chosen)

    def inside(self, written: str) -> Path:
        """A path as written in a file: one that begins with /workspace, /ComfyUI, /build or /config is taken
        under the root, another absolute one as it is, a relative one under the root."""
        for prefix in _MOVED_PREFIXES:
            if written == prefix or written.startswith(prefix + "/"):
                return self.root / written.lstrip("/")
        return self.root / written

    def environment_link(self, env: str) -> Path:
        """`workspace/ComfyUI-<env>`: the symlink to the current generation."""
        return self.workspace / f"ComfyUI-{env}"

    def generation(self, env: str, number: int) -> Path:
        """`workspace/.ComfyUI-<env>.<n>`: one installed tree; scripts are rewritten to this path."""
        return self.workspace / f".ComfyUI-{env}.{number}"

    def environment_data(self, env: str) -> Path:
        """`workspace/data/<env>`: input, output, user; outlives generations."""
        return self.data_dir / env

    def instance_data(self, env: str, instance_id: int) -> Path:
        """Temp folder and database of one instance."""
        return self.data_dir / env / "instances" / str(instance_id)

    def install_log(self, env: str) -> Path:
        return self.log_dir / f"install_{env}.log"

    @property
    def socket(self) -> Path:
        """The API's unix socket."""
        return self.state_dir / "api.sock"

    @property
    def database(self) -> Path:
        return self.state_dir / "comfyd.db"

    @property
    def lock(self) -> Path:
        """Held by the daemon of this state folder."""
        return self.state_dir / "daemon.lock"

    @property
    def journal(self) -> Path:
        """The append-only record of process identities."""
        return self.state_dir / "run.journal"

    @property
    def last_good(self) -> Path:
        """The last accepted desired state, for the next boot with a broken file."""
        return self.state_dir / "last-good.json"

    @property
    def uploads(self) -> Path:
        return self.state_dir / "uploads"

    @property
    def outputs(self) -> Path:
        """Result files of tasks, `<task id>/<n>-<name>`."""
        return self.state_dir / "outputs"
