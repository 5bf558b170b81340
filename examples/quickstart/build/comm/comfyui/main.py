"""A small stand-in for ComfyUI: its HTTP, websocket and process contract in one file, with Python's library alone.

Started exactly like ComfyUI (`python main.py --listen A --port N ...`). It runs graphs of a few nodes on images of one
colour and writes real PNG files; the arithmetic is that of 32-bit floats, so pixels are those of ComfyUI. It speaks
the older contract (0.3.x) or, with `--fake-generation new` or FAKE_COMFYUI_GENERATION=new, the newer one.

It misbehaves on request, by environment variables (unset or 0 = off):
FAKE_COMFYUI_START_DELAY=S         bind the port only after S seconds (also --fake-start-delay)
FAKE_COMFYUI_NEVER_READY=1         never bind the port
FAKE_COMFYUI_EXIT=N                exit with code N instead of binding
FAKE_COMFYUI_IMPORT_FAILED=A,B     report at the start that the custom nodes A and B could not be imported
FAKE_COMFYUI_LOCK_WAIT=S           newer contract: wait S seconds (default 5) for the database of a peer, then exit 1
FAKE_COMFYUI_WEDGE_AFTER=S         S seconds after binding: accept connections, answer nothing, make no progress
                                   (on demand: POST /fake/wedge, or POST /fake/wedge?seconds=S for a while)
FAKE_COMFYUI_CRASH_ON_PROMPT=N     the Nth prompt kills the process as it begins to run
FAKE_COMFYUI_DEVICE_ERROR=1        every prompt ends with a CUDA error (other text: with that CUDA error)
FAKE_COMFYUI_OUT_OF_MEMORY=1       every prompt runs out of memory until POST /free (always: also after that)
FAKE_COMFYUI_FAIL_PROBE=N          every Nth GET /prompt is answered with 500
FAKE_COMFYUI_IGNORE=TERM,INT       ignore these signals
FAKE_COMFYUI_FORK=1                fork a child of the same group that ignores SIGTERM and SIGINT
FAKE_COMFYUI_FLOOD_MB=N            write N MB of lines to stdout after the start
FAKE_COMFYUI_DROP_WS=N             cut every websocket after N frames
FAKE_COMFYUI_LOSE_HISTORY=1        remember no finished prompt
FAKE_COMFYUI_IGNORE_PROMPT_ID=1    choose the prompt id itself
FAKE_COMFYUI_SILENT_PROMPT=N       queue the Nth POST /prompt but never answer it
FAKE_COMFYUI_DROP_PROMPT=N         neither queue nor answer the Nth POST /prompt
FAKE_COMFYUI_JOURNAL=FILE          append a JSON line for each prompt accepted or executed (also GET /fake/journal)
"""

# ruff: noqa: ASYNC230, ASYNC240, E402
import argparse
import os
import sys


def folder(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py", description="A stand-in for ComfyUI.")
    parser.add_argument("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0,::", metavar="IP")
    parser.add_argument("--port", type=int, default=8188)
    for flag in ("--base-directory", "--user-directory"):
        parser.add_argument(flag, type=folder, metavar="DIR")
    for flag in ("--output-directory", "--input-directory", "--temp-directory"):
        parser.add_argument(flag, metavar="DIR")
    parser.add_argument("--database-url", metavar="URL")
    parser.add_argument("--extra-model-paths-config", nargs="+", action="append", metavar="PATH")
    parser.add_argument("--max-upload-size", type=float, default=100, metavar="MB")
    parser.add_argument("--reserve-vram", type=float, metavar="GB")
    for flag in ("--disable-all-custom-nodes", "--disable-metadata", "--verbose"):
        parser.add_argument(flag, action="store_true")
    memory = parser.add_mutually_exclusive_group()
    for flag in ("--cpu", "--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram"):
        memory.add_argument(flag, action="store_true")
    parser.add_argument("--fake-generation", choices=("legacy", "new"))
    parser.add_argument("--fake-start-delay", type=float, metavar="SECONDS")
    return parser.parse_args()


ARGS = arguments()  # before the other imports, so that `--help` answers quickly

import array
import asyncio
import base64
import contextlib
import fcntl
import hashlib
import heapq
import json
import random
import re
import shutil
import signal
import struct
import threading
import time
import uuid
import zlib
from urllib.parse import parse_qs, unquote, urlsplit


def quirk(name: str) -> str:
    value = os.environ.get(f"FAKE_COMFYUI_{name}", "")
    return "" if value == "0" else value


NEW = (ARGS.fake_generation or quirk("GENERATION")) == "new"
VERSION = "0.38.1" if NEW else "0.3.64"
BASE = ARGS.base_directory or os.path.dirname(os.path.abspath(__file__))
FOLDERS = {
    "output": os.path.abspath(ARGS.output_directory or os.path.join(BASE, "output")),
    "input": os.path.abspath(ARGS.input_directory or os.path.join(BASE, "input")),
    "temp": os.path.join(os.path.abspath(ARGS.temp_directory or BASE), "temp"),
}
Graph = dict  # node id -> {"class_type", "inputs"}


class Interrupted(Exception):
    """Somebody asked for an interrupt."""


class OutOfMemoryError(Exception):
    """As torch calls it."""


# --- nodes: an image is (width, height, batch, (r, g, b)), the colours as 32-bit floats between 0 and 1 -------------
def f32(value: float) -> float:
    return array.array("f", [value])[0]


def empty_image(run, width, height, batch_size, color):
    return (width, height, batch_size, tuple(f32((color >> shift & 255) / 255) for shift in (16, 8, 0)))


def image_invert(run, image):
    return (*image[:3], tuple(f32(1.0 - c) for c in image[3]))


def repeat_image(run, image, amount):
    return (image[0], image[1], image[2] * amount, image[3])


def png(width: int, height: int, colour, texts: dict) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(min(255, max(0, int(f32(255.0 * c)))) for c in colour) * width
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    notes = b"".join(chunk(b"tEXt", k.encode() + b"\0" + json.dumps(v).encode()) for k, v in texts.items())
    body = zlib.compress(row * height, 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + notes + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save(images, prefix: str, kind: str, run: "Run") -> dict:
    width, height, batch, colour = images
    target = os.path.abspath(os.path.join(FOLDERS[kind], prefix))
    place, name = os.path.split(target)
    if os.path.commonpath([FOLDERS[kind], place]) != FOLDERS[kind]:
        raise ValueError(f"{prefix} lies outside of the {kind} folder")
    os.makedirs(place, exist_ok=True)
    taken = [re.fullmatch(re.escape(name) + r"_(\d+)_.*", f) for f in os.listdir(place)]
    counter = max((int(m[1]) for m in taken if m), default=0) + 1
    texts = {} if ARGS.disable_metadata else {"prompt": run.graph, **run.extra.get("extra_pnginfo", {})}
    files = []
    for number in range(counter, counter + batch):
        with open(os.path.join(place, f"{name}_{number:05}_.png"), "wb") as file:
            file.write(png(width, height, colour, texts))
        below = os.path.relpath(place, FOLDERS[kind])
        files.append({"filename": os.path.basename(file.name), "subfolder": below.strip("."), "type": kind})
    return {"images": files}


def save_image(run, images, filename_prefix):
    return save(images, filename_prefix, "output", run)


def preview_image(run, images):
    return save(images, "ComfyUI" + SUFFIX, "temp", run)


async def sleep(run, seconds, value=None):
    steps = max(1, min(20, int(seconds * 10)))
    for step in range(1, steps + 1):
        await asyncio.sleep(seconds / steps)
        await run.progress(step, steps)
    return value


async def report(run, value, sleep_seconds):
    """As nodes do that report through ComfyUI's API: progress_state is all that is sent."""
    for step in range(1, 11):
        await asyncio.sleep(sleep_seconds / 10)
        await run.progress(step / 10, 1.0, plain=False)
    return value


def stub_sleep(run, seconds, value=None):
    return sleep(run, seconds)


def device_error(run, value=None):
    """From then on nothing works in this process any more."""
    run.app.device_error = "CUDA error: device-side assert triggered"
    raise RuntimeError(run.app.device_error)


def fail(run, value):
    raise RuntimeError("this node always fails")


def concatenate(run, string_a, string_b, delimiter):
    return delimiter.join((string_a, string_b))


def preview_any(run, source):
    return {"text": [source if isinstance(source, str) else json.dumps(source)]}


SUFFIX = "_temp_" + "".join(random.choice("abcdefghijklmnop") for _ in range(5))
INT = {"width": ("INT", 1, 16384), "height": ("INT", 1, 16384), "batch_size": ("INT", 1, 4096)}
AMOUNT = ("INT", 1, 4096)
SECONDS = ("FLOAT", 0, 1e6)
# class: (required inputs, returned type, function(run, **inputs) -> value or {"ui": ...}, optional inputs)
NODES = {
    "EmptyImage": ({**INT, "color": ("INT", 0, 0xFFFFFF)}, "IMAGE", empty_image),
    "ImageInvert": ({"image": "IMAGE"}, "IMAGE", image_invert),
    "RepeatImageBatch": ({"image": "IMAGE", "amount": AMOUNT}, "IMAGE", repeat_image),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, None, save_image),
    "PreviewImage": ({"images": "IMAGE"}, None, preview_image),
    "StringConcatenate": (dict.fromkeys(("string_a", "string_b", "delimiter"), "STRING"), "STRING", concatenate),
    "PreviewAny": ({"source": "*"}, None, preview_any),
    "StubSleep": ({"seconds": SECONDS}, None, stub_sleep, {"value": "*"}),
    "StubDeviceError": ({}, None, device_error, {"value": "*"}),
    "TestSleep": ({"value": "*", "seconds": SECONDS}, "*", sleep),
    "TestSyncProgressUpdate": ({"value": "*", "sleep_seconds": SECONDS}, "*", report),
    "TestSyncError": ({"value": "*"}, "*", fail),
}


def schema(name: str) -> dict:
    required, returned, _, *optional = NODES[name]

    def shown(spec):
        return [spec, {}] if isinstance(spec, str) else [spec[0], {"min": spec[1], "max": spec[2]}]

    inputs = {"required": {k: shown(v) for k, v in required.items()}}
    inputs["optional"] = {k: shown(v) for o in optional for k, v in o.items()}
    kinds = [returned] if returned else []
    return {
        "name": name, "display_name": name, "description": "", "category": "stand-in", "input": inputs,
        "input_order": {k: list(v) for k, v in inputs.items()}, "output": kinds, "output_name": kinds,
        "output_is_list": [False for _ in kinds], "output_node": returned is None,
    }  # fmt: skip


# --- validation ------------------------------------------------------------------------------------------------------
def complaint(kind: str, message: str, details: str = "", **extra) -> dict:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2


def check_input(graph: Graph, name: str, spec, value) -> dict | None:
    want = spec if isinstance(spec, str) else spec[0]
    if is_link(value):
        source = graph.get(value[0])
        if source is None:
            return complaint("bad_linked_input", "The linked node does not exist", name, input_name=name)
        given = NODES[source["class_type"]][1]
        if given is None or (want != given and "*" not in (want, given)):
            return complaint("return_type_mismatch", "Return type mismatch", f"{name}, {given} is not {want}")
        return None
    if want in ("INT", "FLOAT"):
        try:
            value = int(value) if want == "INT" else float(value)
        except (TypeError, ValueError):
            return complaint("invalid_input_type", f"Value is not of type {want}", name, input_name=name)
        if value < spec[1]:
            return complaint("value_smaller_than_min", f"Value {value} smaller than {spec[1]}", name, input_name=name)
        if value > spec[2]:
            return complaint("value_bigger_than_max", f"Value {value} bigger than {spec[2]}", name, input_name=name)
    return None


def check_node(graph: Graph, node_id: str, found: dict, path: tuple = ()) -> bool:
    """Check a node and everything it is linked to; problems go to `found`."""
    if node_id in path:
        found.setdefault(node_id, []).append(complaint("dependency_cycle" if NEW else "bad_linked_input", "Cycle"))
        return False
    required, _, _, *optional = NODES[graph[node_id]["class_type"]]
    given, good = graph[node_id].get("inputs", {}), True
    for name, spec in [*required.items(), *(pair for o in optional for pair in o.items())]:
        if name not in given:
            problem = name in required and complaint("required_input_missing", "Required input is missing", name)
        else:
            problem = check_input(graph, name, spec, given[name])
        if problem:
            found.setdefault(node_id, []).append(problem)
            good = False
        elif is_link(given.get(name)):
            good = check_node(graph, given[name][0], found, (*path, node_id)) and good
    return good


def validate(graph: Graph, only: list | None) -> tuple[dict | None, list, dict]:
    """(error, outputs to run, node errors) in the words of the contract."""
    for node_id, node in graph.items():
        kind, where = node.get("class_type"), f"Node ID '#{node_id}'"
        if kind is None:
            return complaint("invalid_prompt", "A node has no class_type", where), [], {}
        if kind not in NODES:
            extra = {"node_id": node_id, "class_type": kind, "node_title": kind} if NEW else {}
            name = "missing_node_type" if NEW else "invalid_prompt"
            return complaint(name, f"Cannot execute because node {kind} does not exist", where, **extra), [], {}
    outputs = [n for n, node in graph.items() if NODES[node["class_type"]][1] is None and (only is None or n in only)]
    if not outputs:
        return complaint("prompt_no_outputs", "Prompt has no outputs"), [], {}
    good, errors = [], {}
    for output in outputs:
        found: dict = {}
        if check_node(graph, output, found):
            good.append(output)
        for node_id, problems in found.items():
            kind = graph[node_id]["class_type"]
            entry = errors.setdefault(node_id, {"errors": problems, "dependent_outputs": [], "class_type": kind})
            entry["dependent_outputs"].append(output)
    if good:
        return None, good, errors
    lines = [f"{p['message']}: {p['details']}" for e in errors.values() for p in e["errors"]]
    kind, message = "prompt_outputs_failed_validation", "Prompt outputs failed validation"
    return complaint(kind, message, "\n".join(lines)), [], errors


# --- execution -------------------------------------------------------------------------------------------------------
class Run:
    """One prompt while it runs."""

    def __init__(self, app: "App", item: list) -> None:
        self.app, (_, self.prompt_id, self.graph, self.extra, self.targets) = app, item[:5]
        self.client = self.extra.get("client_id")
        self.messages: list = []
        self.outputs: dict = {}
        self.values: dict = {}
        self.keys: dict[str, str] = {}
        self.node: str | None = None

    def send(self, event: str, **data) -> None:
        self.app.send(self.client, event, {**data, "prompt_id": self.prompt_id})

    def message(self, event: str, **data) -> None:
        data = {"prompt_id": self.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        self.app.send(self.client, event, data)

    async def progress(self, value: float, maximum: float, plain: bool = True) -> None:
        await self.app.unwedged.wait()
        self.app.check_interrupt()
        if plain:
            self.send("progress", value=value, max=maximum, node=self.node)
        state = {"node_id": self.node, "value": value, "max": maximum, "state": "running"}
        self.send("progress_state", nodes={self.node: state})

    def order(self) -> list[str]:
        seen: list[str] = []

        def visit(node_id: str) -> None:
            inputs = self.graph[node_id].get("inputs", {})
            for value in inputs.values():
                if is_link(value):
                    visit(value[0])
            if node_id not in seen:
                seen.append(node_id)
                known = {k: self.keys[v[0]] if is_link(v) else v for k, v in inputs.items()}
                self.keys[node_id] = json.dumps([self.graph[node_id]["class_type"], known], sort_keys=True)

        for target in self.targets:
            visit(target)
        return seen

    async def execute(self) -> bool:
        self.message("execution_start")
        order, cache = self.order(), self.app.cache
        self.message("execution_cached", nodes=[n for n in order if self.keys[n] in cache])
        try:
            for node_id in order:
                await self.app.unwedged.wait()
                self.app.check_interrupt()
                self.node = node_id
                await self.run_node(node_id)
        except Interrupted:
            self.message("execution_interrupted", **self.where(), executed=list(self.values))
        except Exception as error:
            kind = type(error).__name__ if type(error).__module__ == "builtins" else type(error).__qualname__
            self.message(
                "execution_error", **self.where(), executed=list(self.values), exception_message=f"{error}\n",
                exception_type=kind, traceback=[], current_inputs={}, current_outputs=list(self.values),
            )  # fmt: skip
        else:
            self.app.cache = {k: cache[k] for k in self.keys.values()}
            self.message("execution_success")
            return True
        return False

    def where(self) -> dict:
        kind = self.graph[self.node]["class_type"] if self.node else ""
        return {"node_id": self.node, "node_type": kind}

    async def run_node(self, node_id: str) -> None:
        kind, key = self.graph[node_id]["class_type"], self.keys[node_id]
        shown, cache = {"node": node_id, "display_node": node_id}, self.app.cache
        if key not in cache:
            self.send("executing", **shown)
            self.app.check_device()
            inputs = self.graph[node_id].get("inputs", {})
            known = {k: v for part in (NODES[kind][0], *NODES[kind][3:]) for k, v in part.items()}
            given = {k: self.convert(known[k], v) for k, v in inputs.items() if k in known}
            result = NODES[kind][2](self, **given)
            cache[key] = await result if asyncio.iscoroutine(result) else result
        self.values[node_id] = cache[key]
        if NODES[kind][1] is None and cache[key]:
            self.outputs[node_id] = cache[key]
            self.send("executed", **shown, output=cache[key])

    def convert(self, spec, value):
        if is_link(value):
            return self.values[value[0]]
        casts = {"INT": int, "FLOAT": float}
        return casts.get(spec if isinstance(spec, str) else spec[0], lambda v: v)(value)


# --- the server ------------------------------------------------------------------------------------------------------
class Refused(Exception):
    """(status, body) of an answer that is not 200."""


ROUTES: dict[str, dict] = {"GET": {}, "POST": {}}


def route(method: str, path: str, known: bool = True):
    """Serve `path` and everything below it; what follows the path arrives in `tail`."""

    def register(handler):
        if known:
            ROUTES[method][path] = handler
        return handler

    return register


class App:
    def __init__(self) -> None:
        self.pending: list = []
        self.running: list | None = None
        self.current: Run | None = None
        self.history: dict = {}
        self.cancelled: set = set()
        self.sockets: dict[str, asyncio.StreamWriter] = {}
        self.frames: dict[asyncio.StreamWriter, int] = {}
        self.cache: dict = {}
        self.number = self.posts = 0
        self.interrupt = False
        self.wanted, self.unwedged = asyncio.Event(), asyncio.Event()
        self.unwedged.set()
        self.journal: list = []
        told = quirk("DEVICE_ERROR")
        self.device_error = (
            told and f"CUDA error: {'an illegal memory access was encountered' if told == '1' else told}"
        )
        self.full, self.probes = quirk("OUT_OF_MEMORY"), 0

    def note(self, event: str, prompt_id: str, extra: dict) -> None:
        """task: the mark that comfyd puts on its prompts."""
        marks = {"prompt_id": prompt_id, "task": extra.get("comfyd_task", "")}
        self.journal.append({"event": event, **marks, "pid": os.getpid(), "at": time.time()})
        if quirk("JOURNAL"):
            with open(quirk("JOURNAL"), "a") as file:
                file.write(json.dumps(self.journal[-1]) + "\n")

    # websocket and queue
    def queue_info(self) -> dict:
        return {"exec_info": {"queue_remaining": len(self.pending) + (self.running is not None)}}

    def send(self, client: str | None, event: str, data: dict) -> None:
        payload = json.dumps({"type": event, "data": data}).encode()
        size = len(payload)
        head = b"\x81" + (bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size))
        head = head if size < 65536 else b"\x81\x7f" + struct.pack(">Q", size)
        for sid, writer in list(self.sockets.items()):
            if (client is None and event != "status") or client not in (None, sid) or writer.is_closing():
                continue
            writer.write(head + payload)
            self.frames[writer] = self.frames.get(writer, 0) + 1
            if quirk("DROP_WS") and self.frames[writer] >= int(quirk("DROP_WS")):
                writer.transport.abort()

    def queue_changed(self) -> None:
        self.send(None, "status", {"status": self.queue_info()})
        self.wanted.set()

    def check_interrupt(self) -> None:
        if self.interrupt:
            self.interrupt = False
            raise Interrupted

    def check_device(self) -> None:
        if self.device_error:
            raise RuntimeError(self.device_error)
        if self.full:
            raise OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)")

    async def run_prompts(self) -> None:
        executed = 0
        while True:
            while not self.pending:
                self.wanted.clear()
                await self.wanted.wait()
            self.running = heapq.heappop(self.pending)
            self.queue_changed()
            self.current, self.interrupt = Run(self, self.running), False
            executed += 1
            self.note("executed", self.current.prompt_id, self.current.extra)
            if quirk("CRASH_ON_PROMPT") and executed == int(quirk("CRASH_ON_PROMPT")):
                os.kill(os.getpid(), signal.SIGKILL)
            self.finish(self.current, await self.current.execute())

    def finish(self, run: Run, good: bool) -> None:
        status = {"status_str": "success" if good else "error", "completed": good, "messages": run.messages}
        meta = {n: {"node_id": n, "display_node": n, "parent_node": None, "real_node_id": n} for n in run.outputs}
        item, self.running, self.current = self.running, None, None
        if not quirk("LOSE_HISTORY"):
            self.history[run.prompt_id] = {"prompt": item, "outputs": run.outputs, "status": status, "meta": meta}
        self.queue_changed()
        if run.client is not None:
            self.send(run.client, "executing", {"node": None, "prompt_id": run.prompt_id})

    # routes
    @route("GET", "")
    async def get_page(self, **_):
        return b"text/html", b"<!doctype html><title>ComfyUI stand-in</title><p>A stand-in for ComfyUI runs here."

    @route("GET", "prompt")
    async def get_prompt(self, **_):
        self.probes += 1
        if quirk("FAIL_PROBE") and self.probes % int(quirk("FAIL_PROBE")) == 0:
            self.note("refused", "", {})
            raise Refused(500, None)
        return self.queue_info()

    @route("POST", "prompt")
    async def post_prompt(self, body, **_):
        number = float(body["number"]) if "number" in body else -self.number if body.get("front") else self.number
        self.number += "number" not in body
        if not isinstance(body.get("prompt"), dict):
            raise Refused(400, {"error": complaint("no_prompt", "No prompt provided"), "node_errors": {}})
        prompt_id = str(body.get("prompt_id", uuid.uuid4()))
        if NEW and not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", prompt_id):
            raise Refused(400, {"error": complaint("invalid_prompt_id", "prompt_id is not a UUID"), "node_errors": {}})
        if quirk("IGNORE_PROMPT_ID"):
            prompt_id = str(uuid.uuid4())
        error, targets, node_errors = validate(body["prompt"], body.get("partial_execution_targets"))
        if error:
            raise Refused(400, {"error": error, "node_errors": node_errors})
        extra = dict(body.get("extra_data") or {})
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        self.posts += 1
        if quirk("DROP_PROMPT") == str(self.posts):
            await asyncio.Event().wait()
        self.note("accepted", prompt_id, extra)
        heapq.heappush(self.pending, [number, prompt_id, body["prompt"], extra, targets])
        self.queue_changed()
        if quirk("SILENT_PROMPT") == str(self.posts):
            await asyncio.Event().wait()
        return {"prompt_id": prompt_id, "number": number, "node_errors": node_errors}

    @route("GET", "queue")
    async def get_queue(self, **_):
        return {"queue_running": [self.running] if self.running else [], "queue_pending": self.pending}

    @route("POST", "queue")
    async def post_queue(self, body, **_):
        gone = set(body.get("delete", [])) | {i[1] for i in self.pending if body.get("clear")}
        self.cancelled |= gone & {i[1] for i in self.pending}
        self.pending = [i for i in self.pending if i[1] not in gone]
        heapq.heapify(self.pending)
        self.queue_changed()

    @route("GET", "history")
    async def get_history(self, tail="", query=None, **_):
        if tail:
            return {tail: self.history[tail]} if tail in self.history else {}
        items = list(self.history.items())
        return dict(items[-int(query["max_items"]) :] if query.get("max_items") else items)

    @route("POST", "history")
    async def post_history(self, body, **_):
        for prompt_id in list(self.history) if body.get("clear") else body.get("delete", []):
            self.history.pop(prompt_id, None)

    @route("POST", "interrupt")
    async def post_interrupt(self, body, **_):
        wanted = (body or {}).get("prompt_id")
        if not wanted or (self.running and self.running[1] == wanted):
            self.interrupt = True

    @route("POST", "free")
    async def post_free(self, **_):
        self.note("freed", "", {})
        self.full = self.full if self.full == "always" else ""

    @route("GET", "system_stats")
    async def get_system_stats(self, **_):
        system = {"os": sys.platform if NEW else os.name, "ram_total": 1 << 34, "ram_free": 1 << 33, "argv": sys.argv}
        system |= {"comfyui_version": VERSION, "python_version": sys.version, "pytorch_version": "0 (stand-in)"}
        return {"system": system, "devices": [{"name": "cpu", "type": "cpu", "index": None, "vram_total": 1 << 34}]}

    @route("GET", "object_info")
    async def get_object_info(self, tail="", **_):
        return {n: schema(n) for n in NODES if not tail or n == tail}

    @route("GET", "view")
    async def get_view(self, query, **_):
        name, kind = query.get("filename", ""), query.get("type", "output")
        if not name or name.startswith("/") or ".." in name or kind not in FOLDERS:
            raise Refused(400, None)
        place = os.path.abspath(os.path.join(FOLDERS[kind], query.get("subfolder", "")))
        if os.path.commonpath([place, FOLDERS[kind]]) != FOLDERS[kind]:
            raise Refused(403, None)
        path = os.path.join(place, os.path.basename(name))
        if not os.path.isfile(path):
            raise Refused(404, None)
        with open(path, "rb") as file:
            return b"image/png" if name.endswith(".png") else b"application/octet-stream", file.read()

    @route("POST", "upload/image")
    async def post_upload(self, body, **_):
        kind, place = body.get("type", b"input").decode(), body.get("subfolder", b"").decode()
        target = os.path.abspath(os.path.join(FOLDERS[kind], place))
        if os.path.commonpath([target, FOLDERS[kind]]) != FOLDERS[kind] or "image" not in body:
            raise Refused(400, None)
        os.makedirs(target, exist_ok=True)
        name = os.path.basename(body["image filename"].decode())
        (stem, end), number = os.path.splitext(name), 0
        while os.path.exists(os.path.join(target, name)) and body.get("overwrite") not in (b"true", b"1"):
            number += 1
            name = f"{stem} ({number}){end}"
        with open(os.path.join(target, name), "wb") as file:
            file.write(body["image"])
        return {"name": name, "subfolder": place, "type": kind}

    # the newer contract
    def job(self, prompt_id: str) -> dict | None:
        status, item, done = "pending", next((i for i in self.pending if i[1] == prompt_id), None), {}
        if self.running and self.running[1] == prompt_id:
            status, item = "in_progress", self.running
        elif prompt_id in self.history:
            done = self.history[prompt_id]
            item, ends = done["prompt"], [m[0] for m in done["status"]["messages"]]
            status = "completed" if done["status"]["completed"] else "failed"
            status = "cancelled" if "execution_interrupted" in ends else status
        elif prompt_id in self.cancelled:
            return {"id": prompt_id, "status": "cancelled", "outputs": {}}
        return item and {"id": prompt_id, "status": status, "priority": item[0], "outputs": done.get("outputs", {})}

    @route("GET", "api/jobs", NEW)
    async def get_jobs(self, tail="", **_):
        if tail:
            found = self.job(tail)
            if found is None:
                raise Refused(404, {"error": "Job not found"})
            return found
        running = [self.running[1]] if self.running else []
        jobs = [self.job(i) for i in [*running, *(i[1] for i in self.pending), *self.history]]
        return {"jobs": jobs, "pagination": {"offset": 0, "limit": None, "total": len(jobs), "has_more": False}}

    @route("POST", "api/jobs", NEW)
    async def post_jobs(self, tail="", **_):
        prompt_id, _, verb = tail.partition("/")
        if verb != "cancel":
            raise Refused(404, None)
        waiting = prompt_id in [i[1] for i in self.pending]
        await self.post_queue({"delete": [prompt_id]})
        await self.post_interrupt({"prompt_id": prompt_id})
        return {"cancelled": waiting or bool(self.running and self.running[1] == prompt_id)}

    # for tests
    @route("POST", "fake/wedge")
    async def post_wedge(self, query, **_):
        asyncio.get_running_loop().call_soon(self.wedge, float(query.get("seconds", 0)))

    @route("GET", "fake/journal")
    async def get_journal(self, **_):
        return self.journal

    def wedge(self, seconds: float) -> None:
        self.unwedged.clear()
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.unwedged.set)

    # HTTP/1.1 by hand
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            while True:
                line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = line.split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in lines if h)}
                await self.unwedged.wait()
                if headers.get("upgrade", "").lower() == "websocket":
                    await self.websocket(target, headers, reader, writer)
                    break
                await self.answer(method, target, headers, reader, writer)
                if headers.get("connection", "").lower() == "close":
                    break
        writer.close()

    async def answer(self, method, target, headers, reader, writer) -> None:
        try:
            payload = await self.read_body(headers, reader, writer)
            result, status = await self.call(method, target, headers, payload), 200
        except Refused as refused:
            status, result = refused.args
        except Exception as error:  # what ComfyUI does: a bug in a route is an empty 500
            print(f"error in {method} {target}: {error!r}", file=sys.stderr, flush=True)
            status, result = 500, None
        kind, data = result if isinstance(result, tuple) else (b"application/json; charset=utf-8", result)
        if not isinstance(data, bytes):
            data = b"" if data is None else json.dumps(data).encode()
        reason = "OK" if status == 200 else "Error"
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(data)}\r\nContent-Type: "
        writer.write(head.encode() + kind + b"\r\n\r\n" + (b"" if method == "HEAD" else data))
        await writer.drain()

    async def read_body(self, headers, reader, writer) -> bytes:
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            return b"".join(parts)
        size = int(headers.get("content-length", 0))
        payload = await reader.readexactly(size)
        if size > ARGS.max_upload_size * 1024 * 1024:
            raise Refused(413, None)
        return payload

    async def call(self, method, target, headers, payload):
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin and host.split(":")[0] in ("127.0.0.1", "localhost") and urlsplit(origin).netloc != host:
            raise Refused(403, None)
        url = urlsplit(target)
        path = unquote(url.path)
        path = path if path.startswith("/api/jobs") else re.sub(r"^/api(?=/)", "", path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        body = parse_body(headers.get("content-type", ""), payload) if payload else {}
        routes = ROUTES.get("GET" if method == "HEAD" else method, {})
        for name in sorted(routes, key=len, reverse=True):
            if path.strip("/") == name or (name and path.startswith(f"/{name}/")):
                return await routes[name](self, body=body, query=query, tail=path.strip("/")[len(name) + 1 :])
        raise Refused(404, None)

    async def websocket(self, target, headers, reader, writer) -> None:
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{upgrade}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        sid = parse_qs(urlsplit(target).query).get("clientId", [uuid.uuid4().hex])[0]
        self.sockets[sid] = writer
        try:
            self.send(sid, "status", {"status": self.queue_info(), "sid": sid})
            if self.current and self.current.client == sid and self.current.node:
                self.send(sid, "executing", {"node": self.current.node})
            await self.read_frames(reader, writer)
        finally:  # as in ComfyUI: this also forgets a newer socket of the same id
            self.sockets.pop(sid, None)
            self.frames.pop(writer, None)

    async def read_frames(self, reader, writer) -> None:
        while True:
            first, second = await reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
            mask, data = await reader.readexactly(4), await reader.readexactly(size)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            if first & 15 == 8:
                writer.write(bytes([0x88, len(data)]) + data)
                return
            if first & 15 == 9:
                writer.write(bytes([0x8A, len(data)]) + data)


def parse_body(kind: str, payload: bytes) -> dict:
    if not kind.startswith("multipart/form-data"):
        return json.loads(payload)
    fields: dict[str, bytes] = {}
    for part in payload.split(b"--" + kind.partition("boundary=")[2].strip('"').encode())[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        file = re.search(rb'filename="([^"]*)"', head)
        if name:
            fields[name[1].decode()] = data[:-2]
        if name and file:
            fields[name[1].decode() + " filename"] = file[1]
    return fields


# --- the process -----------------------------------------------------------------------------------------------------
def flood(app: App, megabytes: int) -> None:
    line = "x" * 1023 + "\n"
    for _ in range(megabytes * 1024):
        sys.stdout.write(line)
    app.note("flooded", "", {})


def prepare_process() -> None:
    for name in filter(None, quirk("IGNORE").split(",")):
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    if quirk("FORK") and os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(3600)
        os._exit(0)
    shutil.rmtree(FOLDERS["temp"], ignore_errors=True)
    for path in FOLDERS.values():
        os.makedirs(path, exist_ok=True)


def report_imports() -> None:
    """In the words that ComfyUI prints before it listens."""
    failed = quirk("IMPORT_FAILED").split(",")
    print("\nImport times for custom nodes:", file=sys.stderr)
    for name in filter(None, failed):
        print(f"   0.0 seconds (IMPORT FAILED): {os.path.join(BASE, 'custom_nodes', name)}", file=sys.stderr)
    sys.stderr.flush()


def lock_database():
    """The newer contract: one process for each database file; who waits too long for it exits with 1."""
    default = os.path.join(ARGS.user_directory or os.path.join(BASE, "user"), "comfyui.db")
    path = (ARGS.database_url or f"sqlite:///{default}").removeprefix("sqlite:///")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = open(path + ".lock", "w")  # noqa: SIM115
    deadline = time.monotonic() + float(quirk("LOCK_WAIT") or 5)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(f"Could not lock the database {path}: another process uses it; see --database-url")
            time.sleep(0.05)


async def serve_until(stopping: asyncio.Task) -> None:
    app, hosts = App(), ARGS.listen.split(",")
    server = await asyncio.start_server(app.serve, hosts, ARGS.port, limit=1 << 20)
    url = f"http://{hosts[0]}:{ARGS.port}"
    print(f"ComfyUI version: {VERSION}\nTo see the GUI go to: {url}", file=sys.stderr, flush=True)
    runner = asyncio.create_task(app.run_prompts())
    if quirk("FLOOD_MB"):
        threading.Thread(target=flood, args=(app, int(quirk("FLOOD_MB"))), daemon=True).start()
    if quirk("WEDGE_AFTER"):
        asyncio.get_running_loop().call_later(float(quirk("WEDGE_AFTER")), app.wedge, 0)
    await asyncio.wait([stopping, runner], return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if runner.done():
        runner.result()


async def main() -> None:
    stop = asyncio.Event()
    if "INT" not in quirk("IGNORE"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    stopping = asyncio.create_task(stop.wait())
    delay = 1e9 if quirk("NEVER_READY") else ARGS.fake_start_delay or float(quirk("START_DELAY") or 0)
    await asyncio.wait([stopping], timeout=delay)
    if quirk("EXIT") and not stop.is_set():
        print(f"the stand-in was told to exit with {quirk('EXIT')}", file=sys.stderr, flush=True)
        sys.exit(int(quirk("EXIT")))
    if not stop.is_set():
        await serve_until(stopping)
    print("Stopped server", flush=True)


if __name__ == "__main__":
    prepare_process()
    database = lock_database() if NEW else None
    report_imports()
    try:
        asyncio.run(main())
    finally:
        shutil.rmtree(FOLDERS["temp"], ignore_errors=True)
