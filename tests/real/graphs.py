"""Graphs in API format that a real ComfyUI runs without any model; those that sleep or fail need its test nodes.

Sizes are small, colours are given as 0xRRGGBB. `prefix` names the files, so that a test knows its own.
"""

import random
from typing import Any

from tests.graphs import EXACT, Graph, node

RED, BLUE, BLACK = 0xFF0000, 0x0000FF, 0x000000


def canvas(color: int, width: int = 64, height: int = 48, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=batch, color=color)


def save(prefix: str, images: str) -> dict[str, Any]:
    return node("SaveImage", images=[images, 0], filename_prefix=prefix)


def load(name: str) -> dict[str, Any]:
    return node("LoadImage", image=name)


def empty_save(prefix: str) -> Graph:
    return {"1": canvas(RED), "2": save(prefix, "1")}


def invert_scale_preview() -> Graph:
    scale = node("ImageScale", image=["2", 0], upscale_method="lanczos", width=100, height=80, crop="disabled")
    return {
        "1": canvas(EXACT[0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": scale,
        "4": node("PreviewImage", images=["3", 0]),
    }


def load_blur_sharpen(prefix: str, name: str) -> Graph:
    return {
        "1": load(name),
        "2": node("ImageBlur", image=["1", 0], blur_radius=3, sigma=2.0),
        "3": node("ImageSharpen", image=["2", 0], sharpen_radius=1, sigma=1.0, alpha=0.5),
        "4": save(prefix, "3"),
    }


def mask_composite(prefix: str) -> Graph:
    """A red square of 32 in the middle of black 64 x 64, its left 8 columns feathered."""
    feather = node("FeatherMask", mask=["3", 0], left=8, top=0, right=0, bottom=0)
    composite = node(
        "ImageCompositeMasked",
        destination=["1", 0],
        source=["2", 0],
        x=16,
        y=16,
        resize_source=False,
        mask=["4", 0],
    )
    return {
        "1": canvas(BLACK, 64, 64),
        "2": canvas(RED, 32, 32),
        "3": node("SolidMask", value=1.0, width=32, height=32),
        "4": feather,
        "5": composite,
        "6": save(prefix, "5"),
    }


def stitch(prefix: str) -> Graph:
    joined = node(
        "ImageStitch",
        image1=["1", 0],
        image2=["2", 0],
        direction="right",
        match_image_size=True,
        spacing_width=0,
        spacing_color="white",
    )
    return {"1": canvas(RED, 40, 32), "2": canvas(BLUE, 24, 32), "3": joined, "4": save(prefix, "3")}


def scale_by(prefix: str, name: str) -> Graph:
    scaled = node("ImageScaleBy", image=["1", 0], upscale_method="bicubic", scale_by=2.0)
    return {"1": load(name), "2": scaled, "3": save(prefix, "2")}


def quantize_batch(prefix: str, name: str) -> Graph:
    return {
        "1": load(name),
        "2": node("ImageQuantize", image=["1", 0], colors=4, dither="none"),
        "3": node("RepeatImageBatch", image=["2", 0], amount=3),
        "4": save(prefix, "3"),
    }


def audio(prefix: str) -> Graph:
    return {
        "1": node("EmptyAudio", duration=1.5, sample_rate=44100, channels=2),
        "2": node("SaveAudio", audio=["1", 0], filename_prefix=prefix),
    }


def video(prefix: str) -> Graph:
    return {
        "1": canvas(RED, batch=8),
        "2": node("CreateVideo", images=["1", 0], fps=8.0),
        "3": node("SaveVideo", video=["2", 0], filename_prefix=prefix, format="mp4", codec="h264"),
    }


def webp(prefix: str, colors: tuple[int, int, int, int]) -> Graph:
    """Four frames of one colour each; equal ones would be merged."""
    frames = {str(n): canvas(color) for n, color in enumerate(colors)}
    saved = node(
        "SaveAnimatedWEBP",
        images=["all", 0],
        filename_prefix=prefix,
        fps=4.0,
        lossless=True,
        quality=80,
        method="default",
    )
    return {
        **frames,
        "front": node("ImageBatch", image1=["0", 0], image2=["1", 0]),
        "back": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
        "all": node("ImageBatch", image1=["front", 0], image2=["back", 0]),
        "save": saved,
    }


def latent(prefix: str) -> Graph:
    return {
        "1": node("EmptyLatentImage", width=64, height=128, batch_size=2),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix=prefix),
    }


def strings(left: str, right: str) -> Graph:
    return {
        "1": node("StringConcatenate", string_a=left, string_b=right, delimiter="-"),
        "2": node("PreviewAny", source=["1", 0]),
    }


def through(kind: str, **inputs: Any) -> Graph:
    """A picture that no cache knows, through a test node `kind`, into a preview."""
    return {
        "1": canvas(random.randrange(0x1000000), 8, 8),
        "2": node(kind, value=["1", 0], **inputs),
        "3": node("PreviewImage", images=["2", 0]),
    }


def expanding(prefix: str) -> Graph:
    """A node that makes three sleeping nodes while it runs and averages what they give."""
    grown = node("TestDynamicAsyncGeneration", image1=["1", 0], image2=["2", 0], num_async_nodes=3, sleep_duration=0.1)
    return {"1": canvas(RED), "2": canvas(RED), "3": grown, "4": save(prefix, "3")}


def half_failing(prefix: str) -> Graph:
    """One output is saved, then another branch fails."""
    return {
        "1": canvas(random.randrange(0x1000000), 8, 8),
        "2": save(prefix, "1"),
        "3": node("TestSleep", value=["1", 0], seconds=0.3),
        "4": node("TestSyncError", value=["3", 0]),
        "5": node("PreviewImage", images=["4", 0]),
    }
