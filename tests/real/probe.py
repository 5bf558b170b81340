"""Run by the python of an environment, never imported: reads a result file with that environment's own libraries.

python probe.py FILE      prints what is in it as JSON
"""

import json
import sys
from typing import Any


def picture(path: str) -> dict[str, Any]:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        frames = [frame.convert("RGB").getpixel((0, 0)) for frame in ImageSequence.Iterator(image)]
        return {"format": image.format, "size": image.size, "frames": frames}


def stream(path: str) -> dict[str, Any]:
    import av

    with av.open(path) as container:
        one = container.streams[0]
        frames = list(container.decode(one))
        found = {"format": container.format.name, "codec": one.codec_context.name, "frames": len(frames)}
        if one.type == "video":
            middle = frames[0].to_ndarray(format="rgb24")[frames[0].height // 2, frames[0].width // 2]
            rate = float(one.average_rate)
            return {**found, "size": [frames[0].width, frames[0].height], "middle": middle.tolist(), "rate": rate}
        loudest = max(float(abs(frame.to_ndarray()).max()) for frame in frames)
        return {**found, "samples": sum(f.samples for f in frames), "rate": one.rate, "loudest": loudest}


def tensors(path: str) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: {"shape": list(t.shape), "sum": float(abs(t).sum())} for name, t in load_file(path).items()}


READERS = {"png": picture, "webp": picture, "flac": stream, "mp4": stream, "latent": tensors}

if __name__ == "__main__":
    json.dump(READERS[sys.argv[1].rpartition(".")[2]](sys.argv[1]), sys.stdout)
