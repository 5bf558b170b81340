"""A PNG as rows of RGB pixels, by zlib alone: the test must not trust the tools of the environment it tests."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Pixel = tuple[int, int, int]


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of every chunk; raises ValueError on a bad signature or checksum."""
    if data[:8] != SIGNATURE:
        raise ValueError(f"not a PNG: {data[:16]!r}")
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if struct.unpack(">I", data[at + 8 + length : at + 12 + length]) != (zlib.crc32(kind + body),):
            raise ValueError(f"chunk {kind!r} is damaged")
        yield kind, body
        at += 12 + length


def rgb_rows(data: bytes) -> list[list[Pixel]]:
    """Rows of an 8-bit RGB or RGBA picture without interlace (what ComfyUI saves); alpha is dropped."""
    found = list(chunks(data))
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", dict(found)[b"IHDR"])
    step = {2: 3, 6: 4}.get(colour)
    if depth != 8 or step is None or interlace:
        raise ValueError(f"unexpected PNG: depth {depth}, colour type {colour}, interlace {interlace}")
    raw = zlib.decompress(b"".join(body for kind, body in found if kind == b"IDAT"))
    stride = width * step
    above = bytes(stride)
    rows: list[list[Pixel]] = []
    for y in range(height):
        at = y * (stride + 1)
        above = _unfilter(raw[at], raw[at + 1 : at + 1 + stride], above, step)
        rows.append([(above[i], above[i + 1], above[i + 2]) for i in range(0, stride, step)])
    return rows


def as_png(rows: list[list[Pixel]]) -> bytes:
    """The rows as an RGB picture."""
    raw = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    bodies = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in bodies
    )


def _unfilter(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    out = bytearray(line)
    for i, value in enumerate(line):
        left = out[i - step] if i >= step else 0
        corner = above[i - step] if i >= step else 0
        guess = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))[kind]
        out[i] = (value + guess) & 0xFF
    return bytes(out)


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))
