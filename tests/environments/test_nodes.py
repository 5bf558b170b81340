"""Custom nodes from real local repositories."""

import shutil
from pathlib import Path

import pytest

from comfyd.environments.nodes import NodeFailed, check_node, masked
from comfyd.model.desired import EnvironmentSpec, NodeSpec
from tests.environments.house import House, commit, git, make_repository, script

PIP = """
rm /ComfyUI/venv/bin/python
cat > /ComfyUI/venv/bin/python <<'END'
#!/bin/bash
if [ "$1 $2" = "-m pip" ]; then
  echo "$PWD $VIRTUAL_ENV $*" >> "$VIRTUAL_ENV/pip.log"
  case "$(cat "${@: -1}" 2>/dev/null)" in *missing-package*) echo "ERROR: no missing-package" >&2; exit 1;; esac
  exit 0
fi
exec python3 "$@"
END
chmod +x /ComfyUI/venv/bin/python
"""


def spec(*nodes: NodeSpec) -> EnvironmentSpec:
    return EnvironmentSpec(name="comm", nodes=nodes)


@pytest.mark.asyncio
async def test_nodes_come_at_their_commit(house: House, tmp_path: Path) -> None:
    repo = tmp_path / "repos" / "one.git"
    first = make_repository(repo, {"a.py": "1"})
    git("tag", "v1", cwd=repo)
    git("branch", "old", cwd=repo)
    last = commit(repo, {"a.py": "2", "requirements.txt": "x\n"})
    for name in ("two", "three", "four", "five"):
        shutil.copytree(repo, tmp_path / "repos" / name)
    base = tmp_path / "repos"
    house.write_script(script(PIP))
    record = await house.install(
        spec(
            NodeSpec(url=str(repo)),
            NodeSpec(url=f"file://{base}/two", ref="v1"),
            NodeSpec(url=f"file://{base}/three", ref="old"),
            NodeSpec(url=f"{base}/four", ref=first),
            NodeSpec(url=f"{base}/five", ref=first[:10], requirements=False),
        )
    )
    assert record.state == "done"
    assert house.marker().nodes == {"one": last, "two": first, "three": first, "four": first, "five": first}
    assert house.marker().conditions == ()
    nodes = house.link().resolve() / "custom_nodes"
    assert (nodes / "one/a.py").read_text() == "2"
    assert (nodes / "two/a.py").read_text() == "1"
    assert git("rev-parse", "--is-shallow-repository", cwd=nodes / "two") == "true"
    [line] = (house.link() / "venv/pip.log").read_text().splitlines()
    assert line.startswith(f"{nodes}/one {house.link().resolve()}/venv -m pip install --no-input")
    assert line.endswith(f"-r {nodes}/one/requirements.txt")


@pytest.mark.asyncio
async def test_one_bad_node_does_not_stop_the_others(house: House, tmp_path: Path) -> None:
    good = tmp_path / "good"
    make_repository(good, {"a.py": "1"})
    needy = tmp_path / "needy"
    make_repository(needy, {"requirements.txt": "missing-package\n"})
    shutil.copytree(good, tmp_path / "other" / "good")
    house.write_script(script(PIP))
    record = await house.install(
        spec(
            NodeSpec(url=str(tmp_path / "none")),
            NodeSpec(url=str(good), ref="no-such-branch"),
            NodeSpec(url=str(needy)),
            NodeSpec(url="https://user:planted@example.invalid/--x", ref="--upload-pack=touch"),
            NodeSpec(url=f"{tmp_path}/other/good"),
            NodeSpec(url=f"{tmp_path}/other/shipped"),
            NodeSpec(url=f"{tmp_path}/good/.."),
        )
    )
    assert record.state == "done"
    conditions = house.marker().conditions
    assert [(c.type, c.reason) for c in conditions] == [
        ("node_failed", "git_failed"), ("node_failed", "git_failed"), ("node_failed", "requirements_failed"),
        ("node_failed", "bad_name"), ("node_failed", "duplicate_name"), ("node_failed", "exists"),
        ("node_failed", "bad_name"),
    ]  # fmt: skip
    assert "does not appear to be a git repository" in conditions[0].message
    assert "no-such-branch" in conditions[1].message
    assert "ERROR: no missing-package" in conditions[2].message
    nodes = house.link() / "custom_nodes"
    assert sorted(p.name for p in nodes.iterdir()) == ["needy", "shipped"]
    assert list(house.marker().nodes) == ["needy"]
    assert "planted" not in str(house.record()) + str(conditions)


@pytest.mark.asyncio
async def test_nodes_put_in_by_hand_come_along(house: House, tmp_path: Path) -> None:
    repo = tmp_path / "declared"
    make_repository(repo, {"a.py": "1"})
    house.write_script(script(PIP))
    await house.install(spec(NodeSpec(url=str(repo))))
    by_hand = house.link() / "custom_nodes" / "by-hand"
    by_hand.mkdir()
    (by_hand / "mine.py").write_text("mine")
    (by_hand.parent / "single.py").write_text("one file")
    (by_hand.parent / "linked").symlink_to(repo)
    (by_hand.parent / "notes.txt").write_text("no node")
    for fingerprint in ("f2", "f3"):
        assert (await house.install(spec(), fingerprint)).state == "done"
        nodes = house.link() / "custom_nodes"
        assert sorted(p.name for p in nodes.iterdir()) == ["by-hand", "linked", "shipped", "single.py"]
        assert (nodes / "by-hand/mine.py").read_text() == "mine"
        assert (nodes / "single.py").read_text() == "one file"
        assert (nodes / "linked").readlink() == repo
        assert house.marker().carried == ("by-hand", "linked", "single.py")
        assert [c.type for c in house.marker().conditions] == ["nodes_carried"]


@pytest.mark.asyncio
async def test_a_node_of_the_script_is_moved_to_its_ref(house: House, tmp_path: Path) -> None:
    repo = tmp_path / "node"
    first = make_repository(repo, {"a.py": "1"})
    commit(repo, {"a.py": "2"})
    house.write_script(script(f"git clone -q {repo} /ComfyUI/custom_nodes/node"))
    await house.install(spec(NodeSpec(url=str(repo), ref=first)))
    assert house.marker().nodes == {"node": first}
    assert (house.link() / "custom_nodes/node/a.py").read_text() == "1"


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a/b.git", "http://h/a/b", "ssh://git@h/a/b", "git://h/a/b", "file:///a/b", "/a/b",
        "git@github.com:a/b.git",
    ],
)  # fmt: skip
def test_urls_that_git_may_be_given(url: str) -> None:
    check_node(NodeSpec(url=url))


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch%20/tmp/x", "ext::sh/b", "fd::3/b", "--upload-pack=x/b", "-b", "a/b", "../a", "ftp://h/a",
        "https://-oProxyCommand=x/a", "ssh://-oProxyCommand=x/a", "git@-h:a/b", "git@h:-a/b", "https://h/a\n/b",
        "https://h/..", "https://h/.git", "/a/b c", "https://h/a;b", "javascript:x/b", "https://", "/",
    ],
)  # fmt: skip
def test_urls_that_git_is_never_given(url: str) -> None:
    with pytest.raises(NodeFailed):
        check_node(NodeSpec(url=url))


@pytest.mark.parametrize("ref", ["-b", "--x", "a..b", "a b", "a:b", "+a", "a\n", "", "^a", "a~1", "@{u}"])
def test_refs_that_git_is_never_given(ref: str) -> None:
    with pytest.raises(NodeFailed):
        check_node(NodeSpec(url="https://h/a/b", ref=ref))


def test_credentials_are_not_shown() -> None:
    assert masked("https://user:secret@h:8/a") == "https://h:8/a"
