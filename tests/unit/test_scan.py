"""Reading what is watched: real files in a real folder."""

import os
from pathlib import Path

import pytest

from comfyd.core.config import parse
from comfyd.environments import scan
from comfyd.environments.scan import content_hash, read_config_files, watched_dirs
from comfyd.host.files import MAX_CONFIG_BYTES
from comfyd.model.paths import Paths
from comfyd.model.sources import EnvironmentFolder, Variables


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    layout = Paths.under(tmp_path)
    write(layout.instances_file, '{"instances": []}')
    write(layout.environments_dir / "comm" / "config.json", "{}")
    write(layout.build_dir / "comm" / "install.sh", "#!/bin/sh\n", 0o755)
    return layout


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def comm(paths: Paths) -> EnvironmentFolder:
    return next(e for e in read_config_files(paths).environments if e.name == "comm")


def test_reads_everything(paths: Paths) -> None:
    folder = paths.environments_dir / "comm"
    write(folder / "fix_dependencies.sh", "pip install x")
    write(folder / "workflows" / "b.json", "{}")
    write(folder / "workflows" / "a.v-1.json", "{}")
    write(folder / "workflows" / "bad name.json", "{}")
    write(folder / "workflows" / "note.txt", "x")
    write(paths.services_file, '{"services": []}')
    found = read_config_files(paths)
    assert (found.instances.path, found.instances.data) == (str(paths.instances_file), b'{"instances": []}')
    assert found.services is not None
    assert found.services.data == b'{"services": []}'
    one = found.environments[0]
    assert (one.name, one.has_install, one.workflows) == ("comm", True, ("a.v-1", "b"))
    assert (one.config.data, one.config.path) == (b"{}", str(folder / "config.json"))
    assert one.build_hash
    assert one.fix_hash
    assert parse(found, Variables(), None).state == "ok"


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    found = read_config_files(Paths.under(tmp_path / "none"))
    assert (found.instances.problem, found.environments, found.services) == ("missing", (), None)


def test_an_environment_without_build_folder_or_config(paths: Paths) -> None:
    (paths.environments_dir / "bare").mkdir()
    bare = next(e for e in read_config_files(paths).environments if e.name == "bare")
    assert (bare.config.problem, bare.build_hash, bare.has_install, bare.fix_hash) == ("missing", None, False, None)


@pytest.mark.parametrize("kind", ["directory", "fifo", "large", "loop"])
def test_files_that_cannot_be_read_are_problems_and_never_hang(paths: Paths, kind: str) -> None:
    path = paths.instances_file
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    else:
        path.symlink_to(path)
    source = read_config_files(paths).instances
    expected = {"directory": "not_a_file", "fifo": "not_a_file", "large": "too_large", "loop": "unreadable"}[kind]
    assert (source.data, source.problem) == (None, expected)
    assert str(path) in source.detail
    assert watched_dirs(paths)
    result = parse(read_config_files(paths), Variables(), None)
    assert (result.state, next(i.code for i in result.issues)) == ("refused", f"file_{expected}")


def test_bad_folder_names_are_told_and_hidden_ones_are_not(paths: Paths) -> None:
    for name in ("Upper", "a b", ".git", "..data"):
        (paths.environments_dir / name).mkdir()
    write(paths.environments_dir / "README.md", "x")
    found = read_config_files(paths).environments
    assert [(e.name, e.config.problem) for e in found] == [("Upper", "bad_name"), ("a b", "bad_name"), ("comm", None)]
    desired = parse(read_config_files(paths), Variables(), None).desired
    assert desired is not None
    assert [e.name for e in desired.environments] == ["comm"]


def test_the_build_hash_follows_names_run_bits_bytes_and_links(paths: Paths) -> None:
    build = paths.build_dir / "comm"
    seen = {content_hash(build)}

    def changed() -> bool:
        before = len(seen)
        seen.add(content_hash(build))
        return len(seen) == before + 1

    script = write(build / "install.sh", "#!/bin/sh\necho\n", 0o755)
    assert changed()
    script.chmod(0o644)
    assert changed()
    extra = write(build / "sub" / "extra.txt", "x")
    assert changed()
    extra.rename(build / "sub" / "other.txt")
    assert changed()
    (build / "link").symlink_to("sub/other.txt")
    assert changed()
    (build / "link").unlink()
    (build / "link").symlink_to("sub")
    assert changed()
    (build / "sub" / "other.txt").write_text("y")
    assert changed()


def test_what_does_not_change_the_build_hash(paths: Paths) -> None:
    build = paths.build_dir / "comm"
    first = content_hash(build)
    for name in (".install.sh.swp", "install.sh~", ".#install.sh", "#install.sh#", "__pycache__/x.pyc"):
        write(build / name, "x")
    (build / "empty").mkdir()
    os.utime(build / "install.sh", (1, 1))
    (build / "install.sh").chmod(0o711)
    assert content_hash(build) == first
    moved = build.rename(paths.build_dir / "elsewhere")
    assert content_hash(moved) == first
    assert content_hash(paths.build_dir / "missing") is None
    assert content_hash(moved / "install.sh") is None


def test_special_files_and_outside_links_do_not_hang_or_leak(paths: Paths, tmp_path: Path) -> None:
    build = paths.build_dir / "comm"
    outside = write(tmp_path / "outside.txt", "one")
    os.mkfifo(build / "pipe")
    (build / "out").symlink_to(outside)
    (build / "loop").symlink_to(build)
    first = content_hash(build)
    outside.write_text("two")
    assert content_hash(build) == first


def test_a_pass_over_unchanged_files_reads_none_of_them(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    script = paths.build_dir / "comm" / "install.sh"
    monkeypatch.setattr(scan, "SETTLED_S", -60.0)
    first = content_hash(script.parent)
    opened: list[str] = []
    real = os.open

    def counting(path: str, *rest: int) -> int:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(scan.os, "open", counting)
    assert content_hash(script.parent) == first
    assert opened == []
    script.write_text("#!/bin/sh\ntwo\n")
    assert content_hash(script.parent) != first
    assert opened == [str(script)]


def test_a_fresh_change_of_the_same_size_and_time_is_seen(paths: Paths) -> None:
    script = paths.build_dir / "comm" / "install.sh"
    script.write_text("aaaa")
    info = script.stat()
    first = content_hash(script.parent)
    script.write_text("bbbb")
    os.utime(script, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert content_hash(script.parent) != first


def test_fix_hash_follows_the_bytes_also_through_a_link(paths: Paths) -> None:
    folder = paths.environments_dir / "comm"
    real = write(folder / "real.sh", "one")
    (folder / "fix_dependencies.sh").symlink_to(real)
    first = comm(paths).fix_hash
    assert first
    real.write_text("two")
    assert comm(paths).fix_hash not in (None, first)
    real.unlink()
    assert comm(paths).fix_hash is None


def test_watched_dirs(paths: Paths) -> None:
    write(paths.build_dir / "comm" / "sub" / "deep" / "x", "x")
    write(paths.environments_dir / "comm" / "workflows" / "a.json", "{}")
    write(paths.environments_dir / "new" / "config.json", "{}")
    root = paths.root
    expected = {
        root, root / "config", root / "config/environments", root / "config/environments/comm",
        root / "config/environments/comm/workflows", root / "config/environments/new", root / "build",
        root / "build/comm", root / "build/comm/sub", root / "build/comm/sub/deep",
    }  # fmt: skip
    assert set(watched_dirs(paths)) == expected
    assert len(watched_dirs(paths)) == len(expected)


def test_a_missing_directory_is_watched_by_its_parent(tmp_path: Path) -> None:
    layout = Paths.under(tmp_path / "root")
    assert watched_dirs(layout) == (tmp_path,)
    (tmp_path / "root" / "config").mkdir(parents=True)
    assert set(watched_dirs(layout)) == {tmp_path / "root", tmp_path / "root" / "config"}


def test_a_mounted_config_map_is_watched_and_read_through_its_links(paths: Paths, tmp_path: Path) -> None:
    """The Kubernetes layout: file -> ..data/file, ..data -> a folder that is swapped by rename."""
    mount = tmp_path / "mount"
    write(mount / "..1" / "instances.json", '{"instances": []}')
    (mount / "..data").symlink_to("..1")
    (mount / "instances.json").symlink_to("..data/instances.json")
    layout = Paths.under(tmp_path, instances_file=mount / "instances.json")
    assert {mount, mount / "..1"} <= set(watched_dirs(layout))
    assert read_config_files(layout).instances.data == b'{"instances": []}'
    write(mount / "..2" / "instances.json", "{}")
    (mount / "..tmp").symlink_to("..2")
    (mount / "..tmp").rename(mount / "..data")
    assert read_config_files(layout).instances.data == b"{}"
    assert {mount, mount / "..2"} <= set(watched_dirs(layout))


def test_a_file_that_is_mounted_by_itself_is_watched(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.instances_file not in watched_dirs(paths)
    monkeypatch.setattr(scan, "mount_points", lambda: frozenset({"/", str(paths.instances_file.resolve())}))
    assert paths.instances_file.resolve() in watched_dirs(paths)
    paths.instances_file.unlink()
    assert paths.instances_file.resolve() not in watched_dirs(paths)
