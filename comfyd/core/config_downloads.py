"""The `nodes` and `models` lists of an environment's config.json, in all forms that people write.

Owns: which sources and file names are acceptable. Must not: fetch anything or know where trees lie.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from comfyd.core.config_report import Report, members, validated
from comfyd.core.source import child, quoted
from comfyd.model.base import Frozen
from comfyd.model.desired import DownloadParams, ModelSpec, NodeSpec

_SHORT_NODE = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(.+))?", re.ASCII)
_SCP_NODE = re.compile(r"[\w.-]+@[\w.-]+:[\w./~-]+", re.ASCII)
_REF = re.compile(r"[A-Za-z0-9][\w./+@-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{7,40}|[0-9a-f]{64}")
_NODE_SCHEMES = ("https", "http", "ssh", "git", "file")
_PART = re.compile(r"[^/\\\x00-\x1f]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
Made = TypeVar("Made", bound=Frozen)
Read = Callable[[Any, Report, str], Made | None]


def read_list(raw: Any, read: Read[Made], report: Report, pointer: str) -> dict[int, Made]:
    """Index -> member of a list, each through `read`; members with errors are left out."""
    if not isinstance(raw, list):
        report.error("bad_value", f"{pointer[1:]} must be a list, not {quoted(raw)}", pointer)
        return {}
    made = {index: read(entry, report, child(pointer, index)) for index, entry in enumerate(raw)}
    return {index: one for index, one in made.items() if one is not None}


def read_node(raw: Any, report: Report, pointer: str) -> NodeSpec | None:
    """`owner/repo[@ref]`, a git URL, a local repository, or `{url|repo, ref, requirements}`."""
    fields: dict[str, Any] | None = {"url": raw}
    if not isinstance(raw, str):
        fields = members(raw, ("url", "repo", "ref", "requirements"), report, pointer, "a node")
    if fields is None:
        return None
    if "url" in fields and "repo" in fields:
        report.error("bad_value", "url and repo say the same thing", pointer, "keep one of them")
    written = fields.pop("repo", None) or fields.get("url")
    if not isinstance(written, str):
        report.error("missing_key", f"a node needs url or repo as a text, not {quoted(written)}", pointer)
        return None
    url, ref = _split_ref(written.strip())
    if ref is not None and fields.get("ref") not in (None, ref):
        report.error("bad_value", f"the node is pinned twice: @{ref} and ref {quoted(fields['ref'])}", pointer)
    fields["url"] = _node_url(url, report, pointer)
    fields["ref"] = fields.get("ref") if ref is None else ref
    if isinstance(fields["ref"], str) and (not _REF.fullmatch(fields["ref"]) or ".." in fields["ref"]):
        report.error("bad_value", f"{quoted(fields['ref'])} cannot be a branch, tag or commit", pointer)
    node = validated(NodeSpec, fields, report, pointer)
    if node is not None and not re.fullmatch(r"[\w][\w.-]*", node.name):
        report.error("bad_value", f"{quoted(url)} gives no name for a folder of custom_nodes", pointer)
    return node


def _split_ref(written: str) -> tuple[str, str | None]:
    short = _SHORT_NODE.fullmatch(written)
    if short:
        return short[1], short[2]
    head, slash, last = written.rpartition("/")
    name, at, ref = last.partition("@")
    return (head + slash + name, ref) if slash and at else (written, None)


def _node_url(url: str, report: Report, pointer: str) -> str:
    if _SHORT_NODE.fullmatch(url):
        return f"https://github.com/{url}"
    parts = urlsplit(url) if "://" in url else None
    known = parts is not None and parts.scheme in _NODE_SCHEMES and bool(parts.hostname or parts.scheme == "file")
    clean = url.isprintable() and " " not in url and not (parts and (parts.hostname or "").startswith("-"))
    local = url.startswith("/") and ".." not in url.split("/") and url.isprintable()
    if not local and not (clean and (known or _SCP_NODE.fullmatch(url))):
        hint = "write owner/repo, owner/repo@commit, an https:// or git@ URL, or the absolute path of a repository"
        report.error("bad_value", f"{quoted(url)} is no source for a node", pointer, hint)
    return url


def check_nodes(nodes: Mapping[int, NodeSpec], strict: bool, report: Report) -> None:
    """Two nodes in one folder are an error; an unpinned one is a warning (strict: an error)."""
    folders: dict[str, int] = {}
    for index, node in nodes.items():
        pointer = child("/nodes", index)
        if folders.setdefault(node.name.lower(), index) != index:
            report.error("duplicate_node", f"two nodes want the folder custom_nodes/{node.name}", pointer)
        if node.ref is None or (strict and not _COMMIT.fullmatch(node.ref)):
            say = report.error if strict else report.warning
            text = f"{node.name} is not pinned: each install may bring other code"
            say("unpinned_node", text, pointer, "write owner/repo@<commit>")


def read_model(raw: Any, report: Report, pointer: str) -> ModelSpec | None:
    """A URL, or an object with the fields of ModelSpec."""
    fields: dict[str, Any] | None = {"url": raw}
    if not isinstance(raw, str):
        fields = members(raw, ModelSpec.model_fields, report, pointer, "a model")
    if fields is None:
        return None
    if isinstance(fields.get("url"), str):
        fields["url"] = fields["url"].strip()
        _check_url(fields["url"], report, child(pointer, "url") if isinstance(raw, dict) else pointer)
    if isinstance(raw, dict) and "type" not in raw:
        report.warning("model_type_missing", "no type: the model goes to checkpoints", pointer, 'write "type": ...')
    if "download_params" in fields:
        fields["download_params"] = _download_params(fields["download_params"], report, pointer)
    for name, many in (("type", True), ("path", True), ("filename", False)):
        _check_inside(fields.get(name), many, name, report, child(pointer, name))
    if isinstance(fields.get("token_env"), str) and not _VARIABLE.fullmatch(fields["token_env"]):
        text = f"token_env is the name of a variable, not {quoted(fields['token_env'])}"
        report.error("bad_value", text, child(pointer, "token_env"), "never write the token itself into the file")
    _check_headers(fields.get("headers"), report, child(pointer, "headers"))
    return validated(ModelSpec, fields, report, pointer)


def _check_url(url: str, report: Report, pointer: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        report.error("bad_value", f"{quoted(url)} is not an http(s) URL", pointer)


def _check_inside(value: Any, many: bool, name: str, report: Report, pointer: str) -> None:
    """A path that stays below the models folder; a file name is one part."""
    if not isinstance(value, str):
        return
    parts = value.rstrip("/").split("/") if many else [value]
    if not all(_PART.fullmatch(p) and p not in (".", "..") and p.strip() == p for p in parts):
        what = "a relative path below shared-models" if many else "a file name without /"
        report.error("bad_value", f"{name} must be {what}, not {quoted(value)}", pointer)


def _download_params(raw: Any, report: Report, pointer: str) -> dict[str, Any]:
    place = child(pointer, "download_params")
    if not isinstance(raw, dict):
        report.error("bad_value", f"download_params must be an object, not {quoted(raw)}", place)
        return {}
    for name in raw:
        if name not in DownloadParams.model_fields and not name.startswith(("_", "$")):
            report.warning("unknown_parameter", f"download_params: {quoted(name)} is ignored", child(place, name))
    return {name: value for name, value in raw.items() if name in DownloadParams.model_fields}


def _check_headers(raw: Any, report: Report, pointer: str) -> None:
    for name, value in raw.items() if isinstance(raw, Mapping) else ():
        if not _HEADER.fullmatch(name) or not isinstance(value, str) or not value.isprintable():
            report.error("bad_value", f"{quoted(name)} is no valid header", child(pointer, name), key=True)


def check_models(models: Mapping[int, ModelSpec], strict: bool, report: Report) -> None:
    """A pickle format can run code when it is loaded: without sha256 it is a warning, or refused."""
    for index, model in models.items():
        name = model.filename or urlsplit(model.url).path.rpartition("/")[2]
        if model.sha256 is not None or not name.lower().endswith(PICKLES):
            continue
        refused = strict or model.allow_pickle is False
        say = report.error if refused else report.warning
        text = f"{name} is a pickle format, which runs code when it is loaded, and has no sha256"
        say("pickle_without_sha256", text, child("/models", index), "add its sha256, or use a safetensors file")
