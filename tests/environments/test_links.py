"""Merging trees: nothing overwritten, nothing lost, whatever fails."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from comfyd.environments.failure import InstallFailed
from comfyd.environments.links import merge, share


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(params=["same disk", "other disk"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    if request.param == "other disk":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("disk")
def test_files_move_and_the_place_becomes_a_link(tmp_path: Path) -> None:
    place = write(tmp_path / "tree/models", a__b__c="1", d="2", same="same")
    shared = write(tmp_path / "shared", a__old="0", same="same")
    (place / "a" / "to_d").symlink_to("../d")
    assert share(place, shared) == []
    assert os.readlink(place) == "../shared"
    assert tree(shared) == {"a/b/c": "1", "a/old": "0", "a/to_d": "../d", "d": "2", "same": "same"}


@pytest.mark.usefixtures("disk")
def test_what_differs_stays_beside_the_link(tmp_path: Path) -> None:
    place = write(tmp_path / "tree/models", a__x="new", a__y="1", b="file", c__d="1")
    shared = write(tmp_path / "shared", a__x="old", b__z="folder", c="file")
    (place / "out").symlink_to("../main.py")
    [condition] = share(place, shared)
    assert tree(shared) == {"a/x": "old", "a/y": "1", "b/z": "folder", "c": "file"}
    assert tree(tmp_path / "tree/models.not-merged") == {"a/x": "new", "b": "file", "c/d": "1", "out": "../main.py"}
    assert condition.type == "not_merged"
    assert "a/x" in condition.message


def test_links_in_the_shared_tree_are_not_walked_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = write(tmp_path / "tree/models", loras__x="1")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "loras").symlink_to(outside)
    assert [c.type for c in share(place, shared)] == ["not_merged"]
    assert list(outside.iterdir()) == []


def test_a_copy_error_keeps_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    def full(source: Any, target: Any, **_: Any) -> None:
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copy2", full)
    place = write(tmp_path / "tree/models", a__x="1", b="2")
    with pytest.raises(InstallFailed) as caught:
        share(place, tmp_path / "shared")
    assert caught.value.reason == "merge_failed"
    assert "No space left" in caught.value.message
    assert tree(place) == {"a/x": "1", "b": "2"}
    assert tree(tmp_path / "shared") == {}


def test_a_place_that_is_a_link_or_missing_just_becomes_ours(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/models").symlink_to("/nowhere")
    for _ in range(2):
        assert share(tmp_path / "tree/models", tmp_path / "shared") == []
        assert os.readlink(tmp_path / "tree/models") == "../shared"


def test_merging_twice_is_merging_once(tmp_path: Path) -> None:
    source = write(tmp_path / "a", x="1")
    (tmp_path / "b").mkdir()
    assert merge(source, tmp_path / "b") == []
    assert merge(source, tmp_path / "b") == []
    assert tree(tmp_path / "b") == {"x": "1"}
