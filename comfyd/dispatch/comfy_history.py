"""What ComfyUI's words mean: refusals and history entries. Pure; every input is hostile data.

Owns: how an ended prompt is judged, which of its outputs count. Must not: ask anybody or touch a file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_MESSAGE = 2000
MAX_TEXT = 256 * 1024
_DEVICE = re.compile(
    r"CUDA error|CUDA driver|device-side assert|illegal memory access|AcceleratorError|no CUDA-capable device|"
    r"hipError|HIP error|device is lost|unspecified launch failure",
    re.IGNORECASE,
)
_POISON = re.compile(
    r"device-side assert|illegal memory access|AcceleratorError|unspecified launch failure", re.IGNORECASE
)
"""Of a kind after which nothing works in that process any more."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that a node declared. type: `output`, `temp` or `input`, as declared (not checked here)."""

    node: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a prompt ended. device: the error was one of the GPU, not of the graph; poisoned: and it has left the process
    unusable. memory: it ran out of memory, which ComfyUI survives."""

    kind: Literal["success", "error", "interrupted"]
    message: str = ""
    device: bool = False
    poisoned: bool = False
    memory: bool = False
    files: tuple[OutputFile, ...] = ()
    texts: tuple[str, ...] = ()


def judge(entry: Mapping[str, Any]) -> Verdict:
    """A history entry's verdict: by its messages first, as `status_str` can be stale."""
    status = entry.get("status")
    messages = _messages(status)
    if "execution_error" in messages:
        return _failed(messages["execution_error"])
    if "execution_interrupted" in messages:
        return Verdict("interrupted")
    if isinstance(status, Mapping) and status.get("status_str") == "error":
        return Verdict("error", "ComfyUI reports an error without a message")
    outputs = entry.get("outputs")
    outputs = outputs if isinstance(outputs, Mapping) else {}
    return Verdict("success", files=tuple(_files(outputs)), texts=tuple(_texts(outputs)))


def refusal(answer: Any, status: int) -> str:
    """One message from the error and the node errors of an answer to POST /prompt."""
    answer = answer if isinstance(answer, Mapping) else {}
    error, nodes = answer.get("error"), answer.get("node_errors")
    parts = [_problem(error)] if isinstance(error, Mapping) else [str(error)] if error else []
    for node_id, node in nodes.items() if isinstance(nodes, Mapping) else ():
        if not isinstance(node, Mapping):
            continue
        problems = node.get("errors")
        known = [_problem(p) for p in (problems if isinstance(problems, list) else []) if isinstance(p, Mapping)]
        parts.append(f"node {node_id} ({node.get('class_type')}): {'; '.join(known) or 'invalid'}")
    text = ". ".join(p for p in parts if p) or f"POST /prompt was answered with {status}"
    return f"ComfyUI refused the workflow: {text}"[:MAX_MESSAGE]


def _problem(error: Mapping[str, Any]) -> str:
    kind, message, details = (str(error.get(k) or "") for k in ("type", "message", "details"))
    if kind == "prompt_outputs_failed_validation":
        return message
    text = f"{message}: {details}" if details else message
    return f"{text} [{kind}]" if kind else text


def _messages(status: Any) -> dict[str, Mapping[str, Any]]:
    found = status.get("messages") if isinstance(status, Mapping) else None
    pairs = [m for m in found if isinstance(m, list) and len(m) == 2] if isinstance(found, list) else []
    return {str(event): data if isinstance(data, Mapping) else {} for event, data in pairs}


def _failed(data: Mapping[str, Any]) -> Verdict:
    kind, node = str(data.get("exception_type") or "error"), data.get("node_id")
    said = str(data.get("exception_message") or "").strip()
    where = f"node {node} ({data.get('node_type')}): " if node is not None else ""
    memory = "OutOfMemory" in kind or "out of memory" in said.lower()
    text = f"{kind} {said}"
    device = not memory and bool(_DEVICE.search(text))
    poisoned = device and bool(_POISON.search(text))
    return Verdict("error", f"{where}{kind}: {said}"[:MAX_MESSAGE], device=device, poisoned=poisoned, memory=memory)


def _lists(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for node, shown in outputs.items():
        for items in shown.values() if isinstance(shown, Mapping) else ():
            for item in items if isinstance(items, list) else ():
                yield str(node), item


def _files(outputs: Mapping[str, Any]) -> Iterator[OutputFile]:
    for node, item in _lists(outputs):
        if isinstance(item, Mapping) and item.get("filename"):
            name, below, kind = (item.get(k) or "" for k in ("filename", "subfolder", "type"))
            yield OutputFile(node, str(name), str(below), str(kind or "output"))


def _texts(outputs: Mapping[str, Any]) -> Iterator[str]:
    left = MAX_TEXT
    for _, item in _lists(outputs):
        if isinstance(item, str) and left > 0:
            yield item[:left]
            left -= len(item)
