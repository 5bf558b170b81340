"""instances.json as a mount of its own: a container's single-file volume, which keeps the inode it was made from."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.faults.surroundings import mounting
from tests.faults.world import CONVERGED_S, SLACK_S, config, moved

pytestmark = [pytest.mark.timeout(120), pytest.mark.ns, pytest.mark.usefixtures("namespaces")]


def test_edits_in_place_work_and_a_replaced_source_is_told(daemon: Daemon, tmp_path: Path) -> None:
    inside, outside = daemon.root / "instances.json", tmp_path / "outside.json"
    outside.write_bytes(inside.read_bytes())
    daemon.prefix = mounting(("--bind", str(outside), str(inside)))
    daemon.start().until_ready(0, 1)
    before = moved(daemon)

    def edit(name: str) -> None:
        data = json.loads(outside.read_text())
        data["instances"][0]["name"] = name
        outside.write_text(json.dumps(data))

    def name() -> str:
        return str(daemon.instance(0)["name"])

    assert config(daemon)["polling"] is False
    edit("in-place")
    daemon.until(lambda: name() == "in-place", CONVERGED_S + SLACK_S, "an edit in place is live")
    seen, first = config(daemon), outside.stat()
    assert (seen["path"], seen["inode"], seen["mounted"]) == (str(inside), first.st_ino, True)
    assert seen["sha256"] == hashlib.sha256(outside.read_bytes()).hexdigest()
    assert [i["code"] for i in seen["issues"]] == ["mounted_file"]
    assert "mounted file" in seen["issues"][0]["message"]

    replacement = outside.with_name("replacement.json")
    replacement.write_text(outside.read_text().replace("in-place", "by-rename"))
    replacement.rename(outside)
    daemon.until(lambda: "was replaced" in config(daemon)["issues"][0]["message"], 10 + SLACK_S, "the rename is told")
    assert (config(daemon)["inode"], name()) == (first.st_ino, "in-place")
    assert config(daemon)["state"] == "ok"
    assert moved(daemon) == before
