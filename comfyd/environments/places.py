"""Where a model comes from and where it goes: pure derivations of one ModelSpec.

Owns: repository addresses -> file addresses, tokens by host, safe places below shared-models. Touches nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from yarl import URL

from comfyd.host.download import is_file_name
from comfyd.host.net import Request
from comfyd.model.desired import ModelSpec
from comfyd.settings import Settings

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_HF = ("huggingface.co", "hf.co")
_CIVITAI = ("civitai.com",)
_REPO = re.compile(r"(?:(datasets|spaces)/)?([\w.-]+/[\w.-]+)\Z")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


class ModelFailed(Exception):
    """One model cannot be had. reason: stable snake_case; hint: what to do next."""

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Place:
    """Below shared-models; name None: the server names the file."""

    folder: tuple[str, ...]
    name: str | None


def place_of(model: ModelSpec) -> Place:
    """type, then `path` as sub-folders, then the file name. Raises ModelFailed for anything that could leave."""
    folder = (*_segments("type", model.type), *(_segments("path", model.path) if model.path else ()))
    if model.filename:
        return Place(folder, _segments("filename", model.filename)[-1])
    name = URL(model.url.strip()).name
    if "." not in name:
        return Place(folder, None)
    return Place(folder, _segments("url", name)[-1])


def _segments(what: str, text: str) -> tuple[str, ...]:
    parts = tuple(text.rstrip("/").split("/"))
    if not all(is_file_name(part) and not part.startswith(".") for part in parts):
        message = f"`{what}` {text!r} is not a place below shared-models"
        raise ModelFailed("bad_path", message, f"give `{what}` as a relative path without `..`")
    return parts


def request_of(model: ModelSpec, settings: Settings, environ: Mapping[str, str]) -> Request:
    """The file's address with its token (if any) in a header that only its own origin sees."""
    url = _address(model, settings)
    secret = dict(model.headers)
    token = _token(model, url, settings, environ)
    if token and (url.scheme == "https" or settings.allow_private_urls):
        secret["Authorization"] = f"Bearer {token}"
    if not all(text.isprintable() for pair in secret.items() for text in pair):
        raise ModelFailed("bad_header", "a header or token holds control characters", "correct `headers` or the token")
    connect = model.download_params.connect_timeout or 30.0
    return Request(url, secret_headers=secret, connect_timeout_s=connect)


def _address(model: ModelSpec, settings: Settings) -> URL:
    text = model.url.strip()
    if model.source in ("huggingface", "huggingface-cli") and "://" not in text:
        text = f"https://huggingface.co/{text.strip('/')}"
    try:
        url = URL(text)
    except ValueError:
        raise ModelFailed("bad_url", "is not a valid URL", "correct `url`") from None
    if not _is_host(url, _HF):
        return url
    return _hugging_face(model, url, settings)


def _hugging_face(model: ModelSpec, url: URL, settings: Settings) -> URL:
    endpoint = URL(settings.hf_endpoint.rstrip("/"))
    path = url.path.strip("/")
    repo = _REPO.match(path)
    if repo is not None:
        if not model.filename:
            raise ModelFailed("no_file_name", "names a whole repository", "set `filename` to one of its files")
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(model.download_params.repo_type or "", "")
        kind = f"{repo[1]}/" if repo[1] else kind
        revision = quote(model.revision or "main", safe="")
        path = f"{kind}{repo[2]}/resolve/{revision}/{quote(model.filename)}"
    else:
        path = url.raw_path.strip("/").replace("/blob/", "/resolve/", 1)
    base = str(endpoint).rstrip("/")
    return URL(f"{base}/{path}", encoded=True).with_query(url.query)


def _is_host(url: URL, hosts: tuple[str, ...]) -> bool:
    return any(url.host == host or (url.host or "").endswith(f".{host}") for host in hosts)


def _token(model: ModelSpec, url: URL, settings: Settings, environ: Mapping[str, str]) -> str | None:
    if model.token_env:
        if model.token_env.startswith("COMFYD_") or not environ.get(model.token_env):
            message = f"the variable {model.token_env} that `token_env` names is not set"
            raise ModelFailed("token_missing", message, f"set {model.token_env} or remove `token_env`")
        return environ[model.token_env].strip()
    secret = None
    if _is_host(url, _HF) or url.origin() == URL(settings.hf_endpoint).origin():
        secret = settings.hf_token
    elif _is_host(url, _CIVITAI):
        secret = settings.civitai_token
    return secret.get_secret_value().strip() if secret else None


def bytes_of(text: str | int | None) -> int | None:
    """`10G`, `500M`, `1024` as bytes."""
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None:
        raise ModelFailed("bad_size", f"{text!r} is not a size", "write it as 500M or 10G")
    return int(float(match[1]) * _UNITS[match[2]])


def is_unchecked_pickle(model: ModelSpec, name: str) -> bool:
    return model.sha256 is None and name.lower().endswith(PICKLES)
