"""The nine steps on real scripts and trees: what stands on disk after a good, a failed and a repeated install."""

import os
from pathlib import Path

import pytest

from comfyd.environments.install import rewrite_preview
from comfyd.environments.record import MARKER, STEPS
from comfyd.environments.tree import observe
from comfyd.model.desired import EnvironmentSpec
from tests.environments.house import House, alive_with, script, until

pytestmark = pytest.mark.asyncio
COMM = EnvironmentSpec(name="comm")


async def test_a_fresh_install_makes_a_marked_tree_behind_a_link(house: House) -> None:
    original = house.write_script(script())
    before = original.read_bytes()
    record = await house.install()

    assert record.state == "done"
    assert [s.name for s in record.steps] == list(STEPS)
    assert {s.state for s in record.steps} == {"done"}
    assert all(s.started_at and s.finished_at and s.finished_at >= s.started_at for s in record.steps)
    assert house.record() == record
    link = house.link()
    assert os.readlink(link) == ".ComfyUI-comm.1"
    marker = house.marker()
    assert (marker.generation, marker.fingerprint, marker.shipped) == (1, "f1", ("shipped",))
    assert {"--listen", "--port", "--database-url", "--temp-directory", "--help"} - set(marker.flags) == {"--help"}
    assert original.read_bytes() == before
    assert not Path("/ComfyUI").exists()
    assert list((house.paths.state_dir / "build").iterdir()) == []


async def test_models_and_data_are_shared_and_outlive_the_tree(house: House) -> None:
    shared = house.paths.models_dir
    (shared / "checkpoints" / "deep").mkdir(parents=True)
    (shared / "checkpoints" / "deep" / "mine.txt").write_text("mine")
    house.write_script(
        script("echo other > /ComfyUI/models/checkpoints/deep/mine.txt; mkdir -p /ComfyUI/models/newtype")
    )
    await house.install()
    tree = house.link()
    assert os.readlink(tree / "models") == "../shared-models"
    assert (shared / "checkpoints/deep/put.txt").read_text() == "model\n"
    assert (shared / "checkpoints/deep/mine.txt").read_text() == "mine"
    assert (shared / "newtype").is_dir()
    assert (tree / "models.not-merged/checkpoints/deep/mine.txt").read_text() == "other\n"
    assert [c.type for c in house.marker().conditions] == ["not_merged"]
    for name in ("checkpoints", "loras", "controlnet", "vae", "clip_vision", "ipadapter", "instantid", "insightface"):
        assert (tree / "models" / name).is_dir()
    data = house.paths.environment_data("comm")
    assert (data / "output/old.png").read_text() == "picture\n"
    (tree / "output/made.png").write_text("made")
    (tree / "output/old.png").write_text("changed since")
    (tree / "user/note").write_text("note")

    await house.install(fingerprint="f2")
    tree = house.link()
    assert os.readlink(tree) == ".ComfyUI-comm.2"
    assert (tree / "output/made.png").read_text() == "made"
    assert (tree / "output/old.png").read_text() == "changed since"
    assert (tree / "user/note").read_text() == "note"
    assert (house.paths.generation("comm", 1) / MARKER).is_file()


async def test_the_script_sees_only_the_allowed_variables(house: House) -> None:
    secrets = {"HF_TOKEN": "planted-1", "COMFYD_TOKEN": "planted-2", "DATABASE_URL": "postgres://planted", "FOO": "x"}
    wanted = {
        "PIP_INDEX_URL": "http://i", "UV_CACHE_DIR": "/c", "https_proxy": "http://p", "HTTP_PROXY": "http://p",
        "TORCH_VERSION": "2.7", "COMFYUI_REPOSITORY": "/ComfyUI/repo", "FACEFUSION_VERSION": "3",
        "TZ": "UTC", "LANG": "C", "SSL_CERT_FILE": "/c", "REQUESTS_CA_BUNDLE": "/c", "GIT_SSL_CAINFO": "/c",
        "COMFYUI_VERSION": "v1",
    }  # fmt: skip
    secrets["VENV_PATH"] = "/planted/venv"
    house.environ = {**secrets, **wanted, "PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    house.given["skip_model_download"] = True
    house.write_script(
        script("readlink /proc/$$/fd/0 > /ComfyUI/stdin; ls /proc/$$/fd > /ComfyUI/fds; umask > /ComfyUI/umask")
    )
    await house.install()
    tree = house.link().resolve()
    seen = dict(line.split("=", 1) for line in (tree / "env.txt").read_text().splitlines() if "=" in line)
    assert "planted" not in (tree / "env.txt").read_text()
    assert "FOO" not in seen
    assert {k: seen[k] for k in wanted} == {**wanted, "COMFYUI_REPOSITORY": f"{tree}/repo"}
    assert seen["GIT_TERMINAL_PROMPT"] == "0"
    assert seen["SKIP_MODEL_DOWNLOAD"] == "true"
    assert (tree / "stdin").read_text().strip() == "/dev/null"
    assert set((tree / "fds").read_text().split()) <= {"0", "1", "2", "255"}
    assert (tree / "umask").read_text().strip() == "0022"


async def test_a_script_runs_by_its_shebang(house: House) -> None:
    main = "import sys\nprint('--port')\n"
    house.write_script(
        f"#!/usr/bin/env python3\nimport os, sys\nos.makedirs('/ComfyUI/venv/bin')\n"
        f"open('/ComfyUI/main.py', 'w').write({main!r})\nopen('/ComfyUI/venv/bin/activate', 'w').close()\n"
        "os.symlink(sys.executable, '/ComfyUI/venv/bin/python')\nopen('/ComfyUI/who', 'w').write(__file__)\n",
        mode=0o644,
    )
    assert (await house.install()).state == "done"
    assert (house.link() / "who").read_text().startswith(str(house.paths.state_dir / "build" / "comm."))


@pytest.mark.parametrize("first", ["#!/bin/bash\n", ""])
async def test_windows_line_ends_are_named(house: House, first: str) -> None:
    text = (first + script().removeprefix("#!/bin/bash\n")).replace("\n", "\r\n")
    house.write_script("").write_bytes(text.encode())
    record = await house.install()
    assert record.state == "failed"
    assert record.condition is not None
    assert record.condition.reason == "script_line_ends"


async def test_a_script_without_shebang_runs_by_bash(house: House) -> None:
    house.write_script(script().removeprefix("#!/bin/bash\n") + "[[ -n $BASH_VERSION ]]\n", mode=0o644)
    assert (await house.install()).state == "done"


async def test_other_files_of_the_folder_are_rewritten_and_called(house: House) -> None:
    path = house.write_script(script('"$(dirname "$0")/sub/part.sh"; . "${0%/*}/link.sh"'))
    (path.parent / "sub").mkdir()
    part = path.parent / "sub" / "part.sh"
    part.write_text("#!/bin/sh\necho part > /ComfyUI/part\n")
    part.chmod(0o755)
    (path.parent / "linked.sh").write_text("echo linked > /ComfyUI/linked\n")
    (path.parent / "link.sh").symlink_to("linked.sh")
    (path.parent / "fix.patch").write_text(" /ComfyUI/main.py\n")
    (path.parent / "blob").write_bytes(b"\0 /ComfyUI\n")
    assert (await house.install()).state == "done"
    tree = house.link()
    assert (tree / "part").read_text() == "part\n"
    assert (tree / "linked").read_text() == "linked\n"
    preview = rewrite_preview(house.paths, "comm")
    assert f"+echo part > {house.root}/workspace/.ComfyUI-comm.2/part" in preview
    assert "-echo linked > /ComfyUI/linked" in preview
    assert "fix.patch" not in preview
    assert "blob" not in preview


async def test_a_link_that_leaves_the_build_folder_is_refused(house: House, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("/ComfyUI")
    path = house.write_script(script())
    (path.parent / "x").symlink_to(outside)
    record = await house.install()
    assert record.condition
    assert (record.state, record.condition.reason) == ("failed", "build_link_outside")
    assert outside.read_text() == "/ComfyUI"


async def test_a_failing_script_leaves_a_reason_and_no_environment(house: House) -> None:
    house.write_script(script("echo the very reason >&2; exit 7"))
    first = await house.install()
    assert first.state == "failed"
    assert first.condition
    assert first.condition.reason == "script_failed"
    assert "exit code 7: the very reason" in first.condition.message
    assert first.last_lines[-1] == "the very reason"
    assert [s.state for s in first.steps] == ["done"] * 4 + ["failed"] + ["pending"] * 4
    assert house.trees() == [".ComfyUI-comm.1.failed"]
    assert not os.path.lexists(house.link())

    second = await house.install()
    assert second.failures == 2
    assert house.trees() == [".ComfyUI-comm.2.failed"]
    seen = observe(house.paths, "comm", skip_models=False)
    assert (seen.state, seen.installed, seen.failures, seen.failed_fingerprint) == ("failed", False, 2, "f1")
    assert seen.failed_mono == second.failed_mono
    assert seen.last_lines == first.last_lines

    assert (await house.install(fingerprint="f2")).failures == 1
    house.write_script(script())
    done = await house.install(fingerprint="f3")
    assert (done.state, done.failures, done.condition) == ("done", 0, None)


async def test_a_failed_rebuild_keeps_the_installed_generation(house: House) -> None:
    house.write_script(script())
    await house.install()
    house.write_script("#!/bin/sh\nmkdir /ComfyUI\nexit 3\n")
    assert (await house.install(fingerprint="f2")).state == "failed"
    assert house.marker().fingerprint == "f1"
    seen = observe(house.paths, "comm", skip_models=False)
    assert (seen.state, seen.installed, seen.fingerprint, seen.failed_fingerprint) == ("installed", True, "f1", "f2")
    assert house.trees() == [".ComfyUI-comm.1", ".ComfyUI-comm.2.failed", "ComfyUI-comm"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\nexit 0\n", "no_tree"),
        ("#!/bin/bash\r\nmkdir /ComfyUI\r\n", "script_line_ends"),
        ("#!/no/such/program\n", "script_not_runnable"),
        ("#!/bin/sh\ncd /\ngit clone https://example.invalid/ComfyUI.git\n", "not_rewritable"),
        ("#!/bin/sh\nmkdir /ComfyUI\n", "incomplete_tree"),
        (script("echo 'print(1)' > /ComfyUI/main.py"), "no_options"),
        (script("echo 'raise SystemExit(\"broken import\")' > /ComfyUI/main.py"), "not_runnable"),
        (script("rm /ComfyUI/venv/bin/activate"), "incomplete_tree"),
        (script("ln -sf /bin/false /ComfyUI/venv/bin/python"), "not_runnable"),
    ],
)
async def test_trees_that_cannot_be_started_are_not_installed(house: House, text: str, reason: str) -> None:
    house.write_script(text)
    record = await house.install()
    assert record.condition
    assert (record.state, record.condition.reason) == ("failed", reason)
    assert not os.path.lexists(house.link())
    assert not Path("/ComfyUI").exists()


async def test_a_missing_build_script_says_where_it_belongs(house: House) -> None:
    record = await house.install()
    assert record.condition
    assert record.condition.reason == "build_script_missing"
    assert str(house.root / "build/comm/install.sh") in record.condition.message


async def test_a_root_with_spaces_is_refused_before_anything_runs(tmp_path: Path) -> None:
    house = House(tmp_path / "a root")
    house.write_script(script())
    record = await house.install()
    assert record.condition
    assert record.condition.reason == "unsafe_path"


async def test_a_log_that_grew_large_is_put_aside_before_the_next_try(house: House) -> None:
    house.write_script("#!/bin/bash\nhead -c 21000000 /dev/zero | tr '\\0' x\nexit 3\n")
    for _ in range(2):
        assert (await house.install()).state == "failed"
    log = house.paths.install_log("comm")
    assert log.stat().st_size < 21_100_000
    assert log.with_name(f"{log.name}.1").stat().st_size > 21_000_000


async def test_a_silent_script_is_ended_as_a_group(house: House) -> None:
    house.given["install_stall_s"] = 0.4
    house.write_script(
        "#!/bin/bash\nmkdir /ComfyUI\necho begun\n(trap '' TERM; sleep 300) &\nsetsid sleep 300 &\nsleep 300\n"
    )
    record = await house.install()
    assert record.condition
    assert record.condition.reason == "script_stalled"
    assert alive_with(f"COMFYD_PROCESS_UUID={record.uuid}") == []


async def test_a_talking_script_is_ended_at_the_total_limit(house: House) -> None:
    house.given |= {"install_stall_s": 5.0, "install_timeout_s": 0.7}
    house.write_script("#!/bin/bash\nwhile sleep 0.1; do echo talk; done\n")
    record = await house.install()
    assert record.condition
    assert record.condition.reason == "script_timed_out"
    assert alive_with(f"COMFYD_PROCESS_UUID={record.uuid}") == []


async def test_output_now_and_then_is_no_stall(house: House) -> None:
    house.given["install_stall_s"] = 1.0
    house.write_script(script("for i in 1 2 3 4 5; do sleep 0.4; echo $i; done"))
    assert (await house.install()).state == "done"


async def test_what_a_script_leaves_running_is_ended(house: House) -> None:
    house.write_script(script("sleep 300 & setsid sleep 300 &"))
    record = await house.install()
    assert record.state == "done"
    assert alive_with(f"COMFYD_PROCESS_UUID={record.uuid}") == []


async def test_the_fix_script_runs_once_in_the_tree_with_its_venv(house: House) -> None:
    house.write_script(script())
    house.write_fix('pwd > fixed; command -v python >> fixed; echo "$VIRTUAL_ENV" >> fixed; echo x >> /ComfyUI/count\n')
    await house.install()
    tree = house.link().resolve()
    assert (tree / "fixed").read_text().split() == [str(tree), f"{tree}/venv/bin/python", f"{tree}/venv"]
    await house.install()
    assert (tree / "count").read_text() == "x\n"
    assert house.marker().generation == 1


async def test_the_same_fingerprint_builds_nothing(house: House) -> None:
    house.write_script(script())
    await house.install()
    house.write_script("#!/bin/sh\nexit 1\n")
    record = await house.install()
    assert record.state == "done"
    assert {s.name: s.state for s in record.steps if s.state != "skipped"} == {"nodes_and_models": "done"}
    assert house.trees() == [".ComfyUI-comm.1", "ComfyUI-comm"]


async def test_only_the_last_two_generations_stay(house: House) -> None:
    house.write_script(script())
    for number in (1, 2, 3):
        await house.install(fingerprint=f"f{number}")
    assert house.trees() == [".ComfyUI-comm.2", ".ComfyUI-comm.3", "ComfyUI-comm"]


async def test_a_generation_that_a_process_runs_in_stays(house: House) -> None:
    import subprocess

    house.write_script(script())
    await house.install()
    with subprocess.Popen(["sleep", "60"], cwd=house.link().resolve()) as runner:
        for number in (2, 3):
            await house.install(fingerprint=f"f{number}")
        assert ".ComfyUI-comm.1" in house.trees()
        runner.kill()
    await house.install(fingerprint="f4")
    assert house.trees() == [".ComfyUI-comm.3", ".ComfyUI-comm.4", "ComfyUI-comm"]


def foreign_tree(house: House, whole: bool) -> Path:
    tree = house.link()
    (tree / "venv/bin").mkdir(parents=True)
    (tree / "custom_nodes/mine").mkdir(parents=True)
    (tree / "main.py").write_text("print('--port --listen')\n" if whole else "raise SystemExit(3)\n")
    (tree / "venv/bin/activate").write_text("")
    (tree / "venv/bin/python").symlink_to("/usr/bin/env")
    (tree / "venv/bin/python").unlink()
    (tree / "venv/bin/python").symlink_to(Path(os.sys.executable).resolve())  # type: ignore[attr-defined]
    return tree


async def test_a_directory_that_was_there_is_adopted(house: House) -> None:
    house.write_script("#!/bin/sh\nexit 9\n")
    tree = foreign_tree(house, whole=True)
    before = sorted(p.name for p in tree.iterdir())
    record = await house.install()
    assert record.state == "done"
    assert tree.is_dir()
    assert not tree.is_symlink()
    assert sorted(p.name for p in tree.iterdir()) == sorted([*before, MARKER])
    seen = observe(house.paths, "comm", skip_models=False)
    assert (seen.state, seen.generation, seen.tree) == ("installed", 0, str(tree.resolve()))
    assert {"--port", "--listen"} <= seen.flags
    assert [c.type for c in seen.conditions] == ["adopted", "models_not_shared"]

    changed = await house.install(fingerprint="f2")
    assert changed.condition
    assert (changed.state, changed.condition.reason) == ("failed", "adopted_directory")
    assert observe(house.paths, "comm", skip_models=False).installed
    assert sorted(p.name for p in tree.iterdir()) == sorted([*before, MARKER])


async def test_a_directory_that_nobody_adopted_yet_is_seen(house: House) -> None:
    assert not observe(house.paths, "comm", skip_models=False).foreign
    (house.link() / "venv").mkdir(parents=True)
    seen = observe(house.paths, "comm", skip_models=False)
    assert (seen.foreign, seen.installed) == (True, False)


async def test_a_directory_that_cannot_be_started_is_a_conflict_and_stays(house: House) -> None:
    house.write_script(script())
    tree = foreign_tree(house, whole=False)
    before = sorted(p.name for p in tree.rglob("*"))
    record = await house.install()
    assert record.state == "conflict"
    assert record.condition
    assert "cannot be started" in record.condition.message
    assert sorted(p.name for p in tree.rglob("*")) == before
    assert house.trees() == ["ComfyUI-comm"]


async def test_a_link_of_somebody_else_is_never_flipped(house: House, tmp_path: Path) -> None:
    house.write_script(script())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    house.paths.workspace.mkdir(parents=True)
    house.link().symlink_to(elsewhere)
    assert (await house.install()).state == "conflict"
    assert os.readlink(house.link()) == str(elsewhere)
    house.link().unlink()
    house.link().write_text("a file")
    assert (await house.install()).state == "conflict"
    assert house.link().read_text() == "a file"
    assert observe(house.paths, "comm", skip_models=False).state == "conflict"


async def test_a_service_needs_no_main_py(house: House) -> None:
    house.write_script("#!/bin/sh\nmkdir -p /ComfyUI\n", env="face")
    spec = EnvironmentSpec(name="face", command=("python", "serve.py"))
    assert (await house.install(spec)).state == "done"
    assert house.marker("face").flags == ()


async def test_extra_model_paths_instead_of_a_link(house: House) -> None:
    house.write_script(script())
    await house.install(EnvironmentSpec(name="comm", mode="extra_model_paths"))
    tree = house.link()
    assert not (tree / "models").is_symlink()
    assert str(house.paths.models_dir) in (tree / "extra_model_paths.yaml").read_text()


async def test_a_tree_without_marker_is_not_installed(house: House) -> None:
    house.write_script(script())
    await house.install()
    (house.link() / MARKER).unlink()
    assert not observe(house.paths, "comm", skip_models=False).installed
    (house.link() / MARKER).write_text(
        '{"environment": "other", "generation": 1, "fingerprint": "f1", "installed_at": 1}'
    )
    assert not observe(house.paths, "comm", skip_models=False).installed


async def test_progress_rises_to_one(house: House) -> None:
    house.write_script(script())
    await house.install()
    shown = [r.progress for r in house.reports if r.progress is not None]
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    running = [s.name for r in house.reports for s in r.steps if s.state == "running"]
    assert list(dict.fromkeys(running)) == list(STEPS)
    assert "installed to" in house.log()


async def test_a_second_process_does_not_install_at_the_same_time(house: House) -> None:
    import anyio

    from comfyd.errors import LockHeldError

    house.write_script(script("while [ ! -e /ComfyUI/go ]; do sleep 0.05; done"))
    tree = house.paths.generation("comm", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(house.install)
        await until(lambda: (tree / "env.txt").exists(), "the first one runs")
        with pytest.raises(LockHeldError):
            await house.install()
        (tree / "go").touch()
    assert house.trees() == [".ComfyUI-comm.1", "ComfyUI-comm"]


async def test_cancellation_ends_the_group_and_says_interrupted(house: House) -> None:
    import anyio

    house.write_script("#!/bin/bash\nmkdir /ComfyUI\nsleep 300 &\necho up > /ComfyUI/up\nsleep 300\n")
    async with anyio.create_task_group() as group:
        group.start_soon(house.install)
        await until(lambda: (house.paths.generation("comm", 1) / "up").exists(), "the script runs")
        uuid = house.record().uuid
        assert len(alive_with(f"COMFYD_PROCESS_UUID={uuid}")) >= 2
        group.cancel_scope.cancel()
    assert alive_with(f"COMFYD_PROCESS_UUID={uuid}") == []
    record = house.record()
    assert record.state == "interrupted"
    assert record.failures == 0
    assert house.trees() == [".ComfyUI-comm.1.failed"]
    seen = observe(house.paths, "comm", skip_models=False)
    assert seen.state == "absent"
    assert seen.condition
    assert seen.condition.reason == "interrupted"
