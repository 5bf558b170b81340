"""Heads of result files, read without the tools of the environment that wrote them. ValueError: not such a file."""

import json
import struct
from typing import Any


def boxes(mp4: bytes) -> list[tuple[str, bytes]]:
    """(kind, body) of the boxes at the top of an MP4."""
    found, at = [], 0
    while at < len(mp4):
        size, kind = struct.unpack(">I4s", mp4[at : at + 8])
        if size < 8 or at + size > len(mp4):
            raise ValueError(f"box {kind!r} at {at} has {size} bytes of {len(mp4)}")
        found.append((kind.decode("ascii"), mp4[at + 8 : at + size]))
        at += size
    return found


def flac_stream(flac: bytes) -> tuple[int, int, int]:
    """(sample rate, channels, samples) of STREAMINFO, which is always the first block."""
    if flac[:4] != b"fLaC" or flac[4] & 127 != 0:
        raise ValueError(f"not a FLAC: {flac[:8]!r}")
    bits = int.from_bytes(flac[18:26], "big")  # 20 rate, 3 channels - 1, 5 bits per sample - 1, 36 samples
    return bits >> 44, (bits >> 41 & 7) + 1, bits & (1 << 36) - 1


def webp_frames(webp: bytes) -> list[tuple[int, int, int]]:
    """(width, height, milliseconds) of every frame of an animated WebP."""
    if webp[:4] != b"RIFF" or webp[8:12] != b"WEBP" or int.from_bytes(webp[4:8], "little") + 8 != len(webp):
        raise ValueError(f"not a whole WebP: {webp[:12]!r} and {len(webp)} bytes")
    found, at = [], 12
    while at < len(webp):
        kind, size = struct.unpack("<4sI", webp[at : at + 8])
        if kind == b"ANMF":
            width, height, shown = (int.from_bytes(webp[at + 8 + n : at + 11 + n], "little") for n in (6, 9, 12))
            found.append((width + 1, height + 1, shown))
        at += 8 + size + size % 2
    return found


def safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensor bytes); the header's offsets are checked against what is there."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    if max(ends) != len(body):
        raise ValueError(f"tensors end at {max(ends)} of {len(body)} bytes")
    return header, body
