"""Every kind of result that a real ComfyUI makes without a model, through a task of the daemon, judged by content."""

import asyncio
import uuid
from pathlib import Path

import aiohttp
import pytest

from tests.graphs import EXACT
from tests.real import graphs, media
from tests.real.conftest import RealComfyUI
from tests.real.png import Pixel, as_png, rgb_rows
from tests.real.tasks import completed, files, only_picture, probed

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
HALVES = [[RED] * 32 + [BLUE] * 32] * 48
"""64 x 48: red on the left, blue on the right."""


@pytest.fixture
def prefix() -> str:
    return f"g{uuid.uuid4().hex[:12]}"


def upload(comfyui: RealComfyUI, rows: list[list[Pixel]]) -> str:
    """Give the instance a picture as a web page does. Returns the name under which a graph finds it."""

    async def post() -> str:
        form = aiohttp.FormData()
        form.add_field("image", as_png(rows), filename=f"{uuid.uuid4().hex}.png", content_type="image/png")
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{comfyui.url}/upload/image", data=form) as answer,
        ):
            assert answer.status == 200
            return str((await answer.json())["name"])

    return asyncio.run(post())


def size(rows: list[list[Pixel]]) -> tuple[int, int]:
    assert {len(row) for row in rows} == {len(rows[0])}
    return len(rows[0]), len(rows)


def colours(rows: list[list[Pixel]]) -> set[Pixel]:
    return {pixel for row in rows for pixel in row}


def near(pixel: Pixel, wanted: Pixel, by: int = 1) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, wanted, strict=True))


def test_an_empty_image(comfyui: RealComfyUI, prefix: str) -> None:
    task = completed(comfyui, graphs.empty_save(prefix))
    (file,) = task["output_data"]["files"]
    assert (file["filename"], file["type"], file["node"]) == (f"{prefix}_00001_.png", "output", "2")
    rows = only_picture(comfyui, task)
    assert size(rows) == (64, 48)
    assert colours(rows) == {RED}


def test_a_scaled_preview(comfyui: RealComfyUI) -> None:
    task = completed(comfyui, graphs.invert_scale_preview())
    assert task["output_data"]["files"][0]["type"] == "temp"
    rows = only_picture(comfyui, task)
    assert size(rows) == (100, 80)
    inverted = tuple(255 - value for value in EXACT[0].to_bytes(3, "big"))
    assert colours(rows) == {inverted}


def test_a_loaded_picture_blurred_and_sharpened(comfyui: RealComfyUI, prefix: str) -> None:
    rows = only_picture(comfyui, completed(comfyui, graphs.load_blur_sharpen(prefix, upload(comfyui, HALVES))))
    assert size(rows) == (64, 48)
    assert all(row == rows[0] for row in rows)
    assert all(near(pixel, RED) for pixel in rows[0][:26])
    assert all(near(pixel, BLUE) for pixel in rows[0][38:])
    for red, green, blue in rows[0][31:33]:
        assert 20 < red < 235
        assert 20 < blue < 235
        assert green == 0


def test_a_feathered_square_on_black(comfyui: RealComfyUI, prefix: str) -> None:
    rows = only_picture(comfyui, completed(comfyui, graphs.mask_composite(prefix)))
    assert size(rows) == (64, 64)
    assert colours(rows[:16] + rows[48:]) == {BLACK}
    for row in rows[16:48]:
        assert row == rows[16]
        assert set(row[:16]) | set(row[48:]) == {BLACK}
        assert set(row[24:48]) == {RED}
    rising = [red for red, _, _ in rows[16][16:24]]
    assert rising == sorted(set(rising)), "the feathered columns grow from the left"
    assert all(0 < red < 255 for red in rising[:7])


def test_two_pictures_side_by_side(comfyui: RealComfyUI, prefix: str) -> None:
    rows = only_picture(comfyui, completed(comfyui, graphs.stitch(prefix)))
    assert rows == [[RED] * 40 + [BLUE] * 24] * 32


def test_twice_as_large(comfyui: RealComfyUI, prefix: str) -> None:
    rows = only_picture(comfyui, completed(comfyui, graphs.scale_by(prefix, upload(comfyui, HALVES))))
    assert size(rows) == (128, 96)
    assert all(near(pixel, RED) for row in rows for pixel in row[:58])
    assert all(near(pixel, BLUE) for row in rows for pixel in row[70:])


def test_three_files_of_one_batch(comfyui: RealComfyUI, prefix: str) -> None:
    picture = [[(4 * x, 4 * x, 4 * x) for x in range(64)]] * 48
    task = completed(comfyui, graphs.quantize_batch(prefix, upload(comfyui, picture)))
    names = [f["filename"] for f in task["output_data"]["files"]]
    assert names == [f"{prefix}_0000{n}_.png" for n in (1, 2, 3)]
    first, *others = [rgb_rows(data) for data in files(comfyui, task, 3)]
    assert others == [first, first]
    assert len(colours(first)) == 4
    for row in first:
        assert row == sorted(row)
        assert all(near(now, before, by=40) for now, before in zip(row, picture[0], strict=True))


def test_sound(comfyui: RealComfyUI, prefix: str, tmp_path: Path) -> None:
    task = completed(comfyui, graphs.audio(prefix))
    (flac,) = files(comfyui, task, 1)
    assert media.flac_stream(flac) == (44100, 2, 66150), "1.5 s"
    heard = probed(comfyui, flac, tmp_path / "sound.flac")
    assert (heard["codec"], heard["rate"], heard["samples"], heard["loudest"]) == ("flac", 44100, 66150, 0.0)


def test_a_film(comfyui: RealComfyUI, prefix: str, tmp_path: Path) -> None:
    task = completed(comfyui, graphs.video(prefix))
    assert task["output_data"]["text"] == []
    (film,) = files(comfyui, task, 1)
    kinds = [kind for kind, _ in media.boxes(film)]
    assert kinds[0] == "ftyp"
    assert {"moov", "mdat"} <= set(kinds)
    seen = probed(comfyui, film, tmp_path / "film.mp4")
    assert (seen["codec"], seen["frames"], seen["size"], seen["rate"]) == ("h264", 8, [64, 48], 8.0)
    assert near(tuple(seen["middle"]), RED, by=8), "as far as lossy compression keeps it"


def test_an_animation(comfyui: RealComfyUI, prefix: str, tmp_path: Path) -> None:
    task = completed(comfyui, graphs.webp(prefix, (0xFF0000, 0x0000FF, 0x000000, 0xFFFFFF)))
    (webp,) = files(comfyui, task, 1)
    assert media.webp_frames(webp) == [(64, 48, 250)] * 4
    seen = probed(comfyui, webp, tmp_path / "some.webp")
    assert seen["format"] == "WEBP"
    assert [tuple(pixel) for pixel in seen["frames"]] == [RED, BLUE, BLACK, (255, 255, 255)]


def test_a_latent(comfyui: RealComfyUI, prefix: str, tmp_path: Path) -> None:
    (data,) = files(comfyui, completed(comfyui, graphs.latent(prefix)), 1)
    header, tensors = media.safetensors(data)
    assert header["latent_tensor"]["dtype"] == "F32"
    assert header["latent_tensor"]["shape"] == [2, 4, 16, 8]
    assert prefix in header["__metadata__"]["prompt"]
    assert tensors == bytes(2 * 4 * 16 * 8 * 4)
    assert probed(comfyui, data, tmp_path / "x.latent")["latent_tensor"] == {"shape": [2, 4, 16, 8], "sum": 0.0}


def test_text(comfyui: RealComfyUI) -> None:
    task = completed(comfyui, graphs.strings("größer", "<b>"))
    assert task["output_data"] == {"urls": [], "files": [], "text": ["größer-<b>"]}
    assert comfyui.daemon.call("GET", f"/tasks/{task['taskId']}/outputs/0").status == 404


def test_nodes_that_appear_while_it_runs(comfyui: RealComfyUI, prefix: str) -> None:
    assert colours(only_picture(comfyui, completed(comfyui, graphs.expanding(prefix)))) == {RED}


def test_a_whole_picture_is_read_alike_by_the_environment(comfyui: RealComfyUI, prefix: str, tmp_path: Path) -> None:
    (png,) = files(comfyui, completed(comfyui, graphs.stitch(prefix)), 1)
    assert probed(comfyui, png, tmp_path / "a.png") == {"format": "PNG", "size": [64, 32], "frames": [list(RED)]}
