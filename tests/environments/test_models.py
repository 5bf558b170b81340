"""Model downloads against a server that cuts, lies, refuses and waits: what stands on disk afterwards."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from comfyd.environments.models import ModelFetcher
from comfyd.model.base import Condition
from comfyd.model.desired import DownloadParams, EnvironmentSpec, ModelSpec
from tests.environments.fileserver import FileServer, Served, serving
from tests.environments.house import House, safetensors, script, until

pytestmark = pytest.mark.asyncio
QUICK = DownloadParams(retries=3, retry_delay=0.01)
DATA = safetensors(3_000_000)


def model(server: FileServer, at: str = "/m.safetensors", **given: Any) -> ModelSpec:
    return ModelSpec(url=server.url(at), **{"download_params": QUICK, **given})


async def fetch(house: House, *models: ModelSpec) -> list[Condition]:
    house.paths.models_dir.mkdir(parents=True, exist_ok=True)
    fetcher = ModelFetcher(house.paths, house.settings, house.environ)
    try:
        return await fetcher.fetch_all(models, lambda share: None)
    finally:
        await fetcher.aclose()


def files(house: House) -> dict[str, bytes]:
    top = house.paths.models_dir
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


async def test_a_file_lands_under_its_name(house: House) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        sha = hashlib.sha256(DATA).hexdigest()
        wanted = model(
            server, type="loras", path="sub/dir", filename="x.safetensors", sha256=sha.upper(), size=len(DATA)
        )
        assert await fetch(house, wanted) == []
        assert files(house) == {"loras/sub/dir/x.safetensors": DATA}
        assert await fetch(house, wanted) == []
        assert len(server.asked) == 1


async def test_ten_cuts_cost_no_more_than_a_tenth(house: House) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA, cuts=10, cut_after=len(DATA) // 11)
        assert await fetch(house, model(server)) == []
        assert files(house) == {"checkpoints/m.safetensors": DATA}
        assert server.sent <= 1.1 * len(DATA)
        assert len(server.asked) == 11


@pytest.mark.parametrize("fault", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
async def test_without_safe_ranges_it_begins_again(house: House, fault: dict[str, Any]) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA, cuts=2, cut_after=1_200_000, **fault)
        assert await fetch(house, model(server)) == []
        assert files(house) == {"checkpoints/m.safetensors": DATA}


async def test_a_changed_file_is_never_glued_to_the_old_one(house: House) -> None:
    other = safetensors(2_500_000)
    async with serving() as server:
        served = server.files["/m.safetensors"] = Served(DATA, cuts=1, cut_after=2_000_000)

        def change() -> None:
            if len(server.asked) == 2:
                served.data, served.etag = other, '"two"'

        served.before = change
        assert await fetch(house, model(server)) == []
        assert files(house) == {"checkpoints/m.safetensors": other}


async def test_a_server_that_ignores_if_range_is_caught(house: House) -> None:
    other = safetensors(2_500_000)
    async with serving() as server:
        served = server.files["/m.safetensors"] = Served(DATA, cuts=1, cut_after=1_500_000)

        def lie() -> None:
            if len(server.asked) == 2:
                served.data, served.etag = other, '"two"'
                served.headers = {}

        served.before = lie
        server._start = lambda request, s: int(  # type: ignore[method-assign]
            request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-")
        )
        assert await fetch(house, model(server)) == []
        assert files(house) == {"checkpoints/m.safetensors": other}


async def test_an_interrupted_download_goes_on_in_the_next_process(house: House) -> None:
    async with serving() as server:
        served = server.files["/m.safetensors"] = Served(DATA, hold=asyncio.Event())
        part = house.paths.models_dir / "checkpoints" / "m.safetensors.part"
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, house, model(server))
            await until(lambda: part.exists() and part.stat().st_size > 1_000_000, "half of it is there")
            group.cancel_scope.cancel()
        assert list(files(house)) == ["checkpoints/m.safetensors.part"]
        kept = part.stat().st_size
        served.hold = None
        server.sent = 0
        assert await fetch(house, model(server)) == []
        assert files(house) == {"checkpoints/m.safetensors": DATA}
        assert server.sent == len(DATA) - kept


@pytest.mark.parametrize(
    ("served", "given", "reason", "requests"),
    [
        (Served(DATA), {"sha256": "0" * 64}, "wrong_sha256", 3),
        (Served(DATA), {"size": 5}, "wrong_size", 1),
        (Served(DATA[:-1]), {}, "not_safetensors", 3),
        (Served(DATA + b"x"), {}, "not_safetensors", 3),
        (Served(b"\xff" * 100), {}, "not_safetensors", 3),
        (Served(b"<html>login</html>", type_="text/html"), {}, "html", 1),
        (Served(b"\n<!DOCTYPE html>x"), {"filename": "m.bin"}, "html", 1),
        (Served(b""), {"filename": "m.gguf"}, "not_gguf", 3),
        (Served(b""), {"filename": "m.onnx"}, "empty", 3),
        (Served(DATA, cuts=99, cut_after=0), {}, "network", 4),
        (Served(DATA, statuses=[(403, {})] * 9), {}, "http_403", 1),
        (Served(DATA, statuses=[(404, {})] * 9), {}, "http_404", 1),
        (Served(DATA, statuses=[(401, {})] * 9), {}, "http_401", 1),
        (Served(DATA, statuses=[(500, {})] * 9), {}, "http_500", 4),
        (Served(DATA), {"download_params": DownloadParams(max_filesize="1M")}, "too_large", 1),
        (Served(DATA), {"unpack": True}, "unpack_unsupported", 0),
        (Served(DATA), {"filename": "m.ckpt", "allow_pickle": False}, "pickle_refused", 0),
        (Served(DATA), {"token_env": "NO_SUCH_TOKEN"}, "token_missing", 0),
        (Served(DATA), {"token_env": "COMFYD_TOKEN"}, "token_missing", 0),
    ],
)
async def test_what_is_wrong_never_gets_a_models_name(
    house: House, served: Served, given: dict[str, Any], reason: str, requests: int
) -> None:
    house.environ = {"COMFYD_TOKEN": "planted"}
    async with serving() as server:
        server.files["/m.safetensors"] = Served(**vars(served) | {"statuses": list(served.statuses)})
        [condition] = await fetch(house, model(server, **given))
        assert (condition.type, condition.reason) == ("model_failed", reason)
        assert server.url("/m.safetensors") in condition.message
        assert len(server.asked) == requests
    assert [name for name in files(house) if not name.endswith(".part")] == []


async def test_both_hashes_are_named(house: House) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        [condition] = await fetch(house, model(server, sha256="0" * 64))
        assert hashlib.sha256(DATA).hexdigest() in condition.message
        assert "0" * 64 in condition.message
    assert files(house) == {}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_asks_for_patience_gets_it(house: House, status: int) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA, statuses=[(status, {"Retry-After": "1"})])
        begun = anyio.current_time()
        assert await fetch(house, model(server)) == []
        assert anyio.current_time() - begun >= 1.0
        assert len(server.asked) == 2


async def test_no_more_than_two_at_once_from_one_host(house: House) -> None:
    async with serving() as server:
        gate = asyncio.Event()
        for index in range(4):
            server.files[f"/{index}.safetensors"] = Served(DATA, hold=gate)
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, house, *[model(server, f"/{i}.safetensors") for i in range(4)])
            await until(lambda: server.at_once == 2, "two are asked for")
            gate.set()
        assert server.most_at_once == 2
        assert len(files(house)) == 4


async def test_two_that_want_one_file_share_one_transfer(house: House) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, house, model(server), model(server))
            group.start_soon(fetch, house, model(server))
        assert len(server.asked) == 1
        assert files(house) == {"checkpoints/m.safetensors": DATA}


async def test_a_file_that_is_there_is_kept_unless_its_hash_differs(house: House) -> None:
    place = house.paths.models_dir / "checkpoints" / "m.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    sha = hashlib.sha256(DATA).hexdigest()
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        assert await fetch(house, model(server)) == []
        assert place.read_bytes() == b"mine"
        server.files["/m.safetensors"].statuses = [(404, {})]
        [condition] = await fetch(house, model(server, sha256=sha))
        assert condition.reason == "http_404"
        assert place.read_bytes() == b"mine"
        assert await fetch(house, model(server, sha256=sha)) == []
        assert place.read_bytes() == DATA
        assert await fetch(house, model(server, sha256=sha)) == []
        assert len(server.asked) == 2


async def test_the_server_may_name_the_file(house: House) -> None:
    async with serving() as server:
        server.files["/api/download/7"] = Served(
            DATA, headers={"Content-Disposition": 'attachment; filename="named.safetensors"'}
        )
        wanted = model(server, "/api/download/7")
        assert await fetch(house, wanted) == []
        assert files(house) == {"checkpoints/named.safetensors": DATA}
        assert await fetch(house, wanted) == []
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "given",
    [
        "filename*=UTF-8''../x.safetensors", "filename*=UTF-8''..%2f..%2fx.safetensors",
        'filename="../x.safetensors"', 'filename="/tmp/x.safetensors"', 'filename="a/x.safetensors"',
        "filename*=UTF-8''x%01.safetensors",
    ],
)  # fmt: skip
async def test_a_server_cannot_name_a_place_elsewhere(house: House, given: str) -> None:
    async with serving() as server:
        server.files["/api/download/7"] = Served(DATA, headers={"Content-Disposition": f"attachment; {given}"})
        [condition] = await fetch(house, model(server, "/api/download/7"))
        assert condition.reason == "no_file_name"
    assert [n for n in files(house) if not n.endswith(".part")] == []
    assert not list(house.root.rglob("x.safetensors"))


@pytest.mark.parametrize(
    "given",
    [
        {"type": ".."}, {"type": "a/../../b"}, {"type": "/etc"}, {"type": ""}, {"path": "../x"}, {"path": "/tmp"},
        {"filename": "../x"}, {"filename": ".."}, {"filename": "a\nb"}, {"filename": "a\\b"}, {"filename": "x" * 300},
        {"type": ".hidden"}, {"filename": "a/../../b"},
    ],
)  # fmt: skip
async def test_places_outside_of_shared_models_are_refused(house: House, given: dict[str, Any]) -> None:
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        [condition] = await fetch(house, model(server, **given))
        assert (condition.type, condition.reason) == ("model_failed", "bad_path")
        assert server.asked == []
    assert files(house) == {}


async def test_links_below_shared_models_are_not_followed(house: House, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    house.paths.models_dir.mkdir(parents=True)
    (house.paths.models_dir / "loras").symlink_to(outside)
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        [condition] = await fetch(house, model(server, type="loras"))
        assert condition.reason == "bad_folder"
        (house.paths.models_dir / "vae").mkdir()
        (house.paths.models_dir / "vae" / "m.safetensors.part").symlink_to(outside / "planted")
        [condition] = await fetch(house, model(server, type="vae"))
        assert condition.reason == "disk_error"
    assert list(outside.iterdir()) == []


async def test_tokens_go_to_their_own_host_only(house: House) -> None:
    async with serving() as hub, serving() as cdn:
        house.given |= {"hf_token": SecretStr("hf-planted"), "hf_endpoint": hub.base}
        house.environ = {"MINE": "own-planted"}
        cdn.files["/blob"] = Served(DATA)
        target = cdn.url("/blob")
        hub.files["/owner/repo/resolve/main/dir/a b.safetensors"] = Served(DATA, statuses=[(302, {"Location": target})])
        hub.files["/own.safetensors"] = Served(DATA, statuses=[(307, {"Location": target})])
        repo = ModelSpec(url="owner/repo", source="huggingface", filename="dir/a b.safetensors", download_params=QUICK)
        own = model(hub, "/own.safetensors", token_env="MINE", headers={"X-Mine": "header-planted"})
        assert await fetch(house, repo, own) == []
        assert sorted(files(house)) == ["checkpoints/a b.safetensors", "checkpoints/own.safetensors"]
        seen = {path: headers.get("Authorization") for path, headers in hub.asked}
        assert seen == {
            "/owner/repo/resolve/main/dir/a b.safetensors": "Bearer hf-planted",
            "/own.safetensors": "Bearer own-planted",
        }
        assert "planted" not in str(cdn.asked)
        kept = [p.read_text(errors="replace") for p in house.paths.state_dir.rglob("*") if p.is_file()]
        assert "planted" not in "".join(kept)


async def test_hugging_face_pages_become_files(house: House) -> None:
    async with serving() as hub:
        house.given["hf_endpoint"] = hub.base
        hub.files["/o/r/resolve/main/x.safetensors"] = Served(DATA)
        hub.files["/datasets/o/r/resolve/v2/y.safetensors"] = Served(DATA)
        wanted = (
            ModelSpec(url="https://huggingface.co/o/r/blob/main/x.safetensors", download_params=QUICK),
            ModelSpec(
                url="https://huggingface.co/datasets/o/r",
                filename="y.safetensors",
                revision="v2",
                download_params=QUICK,
            ),
        )
        assert await fetch(house, *wanted) == []
        assert len(files(house)) == 2


async def test_a_chain_of_redirects_ends(house: House) -> None:
    async with serving() as server:
        for number in range(5):
            server.files[f"/{number}.bin"] = Served(DATA, statuses=[(302, {"Location": f"/{number + 1}.bin"})])
        server.files["/2.bin"].statuses = []
        assert [c.type for c in await fetch(house, model(server, "/0.bin"))] == ["model_unchecked"]
        server.files["/2.bin"].statuses = [(302, {"Location": "/3.bin"})]
        for number in (0, 1):
            server.files[f"/{number}.bin"].statuses = [(302, {"Location": f"/{number + 1}.bin"})]
        [condition] = await fetch(house, model(server, "/0.bin", filename="other.safetensors"))
        assert condition.reason == "url_refused"


async def test_private_addresses_are_refused_by_default(house: House) -> None:
    house.given = {}
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        port = server.base.rpartition(":")[2]
        wanted = [
            ModelSpec(url=f"http://{host}/m.safetensors", filename=f"{i}.safetensors", download_params=QUICK)
            for i, host in enumerate(
                (f"127.0.0.1:{port}", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0177.0.0.1",
                 "localhost", "0.0.0.0", "169.254.169.254", "10.0.0.1", "[64:ff9b::7f00:1]", "127.1")
            )
        ]  # fmt: skip
        conditions = await fetch(house, *wanted)
        assert [c.reason for c in conditions] == ["url_refused"] * len(wanted)
        assert server.asked == []
    assert files(house) == {}


async def test_too_little_room_is_said_before_a_byte(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyd.host.part import Folder

    monkeypatch.setattr(Folder, "free_bytes", lambda self: 1000)
    async with serving() as server:
        server.files["/m.safetensors"] = Served(DATA)
        [condition] = await fetch(house, model(server))
        assert condition.reason == "disk_full"
    assert files(house) == {}


async def test_a_missing_model_does_not_fail_the_install(house: House) -> None:
    house.write_script(script())
    async with serving() as server:
        server.files["/good.safetensors"] = Served(DATA)
        spec = EnvironmentSpec(
            name="comm", models=(model(server, "/good.safetensors"), model(server, "/gone.safetensors"))
        )
        first = await house.install(spec)
        assert (first.state, first.failures, first.models_failed) == ("done", 1, spec.models_fingerprint)
        assert [c.reason for c in house.marker().conditions] == ["http_404"]
        assert house.marker().models_fingerprint == ""
        assert (house.link() / "models/checkpoints/good.safetensors").read_bytes() == DATA

        server.files["/gone.safetensors"] = Served(DATA)
        second = await house.install(spec)
        assert (second.state, second.failures) == ("done", 0)
        assert house.marker().models_fingerprint == spec.models_fingerprint
        assert house.marker().generation == 1
        assert house.marker().conditions == ()


async def test_downloads_can_be_switched_off(house: House) -> None:
    house.given["skip_model_download"] = True
    house.write_script(script())
    async with serving() as server:
        spec = EnvironmentSpec(name="comm", models=(model(server),))
        assert (await house.install(spec)).state == "done"
        assert server.asked == []
        assert house.marker().models_skipped
