"""Text and data without secrets, for what is given to strangers (bug reports). Pure.

Known secrets are replaced wherever they stand; beside them whatever looks like one: values of names like *TOKEN*,
credentials and queries of URLs, header values, tokens with a known prefix. Too much is masked rather than too little.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

MASK = "***"
SHORTEST = 4
"""Shorter values are not searched for in free text: they would turn up in every other word."""

_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|KEY|CREDENTIAL|COOKIE|AUTHORIZATION", re.IGNORECASE)
_SECRET_FIELD = re.compile(r"token|passw|passphrase|secret|api_?key|credential|cookie|authorization", re.IGNORECASE)
_HOLDERS = frozenset({"headers"})
_VARIABLES = frozenset({"env", "environ", "environment_variables"})

_NAME = r"[\w.-]*(?:token|passw(?:or)?d|passphrase|secret|key|credential|cookie|authorization)[\w.-]*"
_VALUE = r"""[^\s"'\\,;&}\]]+"""
_NO_VALUE = rf"""[\s"'{{\[]|{re.escape(MASK)}|Bearer\b|Basic\b"""
_PATTERNS = (
    # credentials and the query of a URL
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"'<>]+@", re.IGNORECASE), rf"\1{MASK}@"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s\"'<>?#\\]*)\?[^\s\"'<>\\]*", re.IGNORECASE), rf"\1?{MASK}"),
    # every value of a headers object, every secret member of any object
    (re.compile(r'("headers"\s*:\s*\{)[^{}]*(\})', re.IGNORECASE), rf'\1"{MASK}": "{MASK}"\2'),
    (re.compile(rf'(["\']{_NAME}["\']\s*:\s*)(["\'])(?:\\.|(?!\2)[^\\\n])*\2', re.IGNORECASE), rf"\1\2{MASK}\2"),
    # options: --api-key VALUE, --token=VALUE, ["--api-key", "VALUE"]
    (re.compile(rf"(--{_NAME}(?:=|\s+|[\"']\s*,\s*[\"']))(?!--){_VALUE}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer|Basic)(\s+)[^\s\"',;]+", re.IGNORECASE), rf"\1\2{MASK}"),
    # NAME=value, name: value
    (re.compile(rf"(\b{_NAME}\s*[=:]\s*[\"']?)(?!{_NO_VALUE}){_VALUE}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abp]-|glpat-|AKIA)[A-Za-z0-9_-]{8,}"), MASK),
)  # fmt: skip


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name may hold a secret."""
    return _SECRET_NAME.search(name) is not None


def mask_text(text: str, secrets: Collection[str] = ()) -> str:
    """`text` without the given values and without whatever looks like a secret."""
    for secret in sorted((s for s in secrets if len(s) >= SHORTEST), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def mask_data(value: Any, secrets: Collection[str] = ()) -> Any:
    """The same for JSON data: by name of a member, and every text in it."""
    if isinstance(value, Mapping):
        return {key: _member(str(key), inner, secrets) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_data(inner, secrets) for inner in value]
    return mask_text(value, secrets) if isinstance(value, str) else value


def _member(name: str, value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, Mapping) and name in _HOLDERS:
        return dict.fromkeys(value, MASK)
    if isinstance(value, Mapping) and name in _VARIABLES:
        return mask_variables({str(k): str(v) for k, v in value.items()}, secrets)
    if _SECRET_FIELD.search(name) and isinstance(value, (str, int)) and not isinstance(value, bool):
        return MASK
    return mask_data(value, secrets)


def mask_variables(variables: Mapping[str, str], secrets: Collection[str] = ()) -> dict[str, str]:
    """Variables with the values of secret names masked, and the rest as text."""
    return {name: MASK if is_secret_name(name) else mask_text(value, secrets) for name, value in variables.items()}


def secret_values(variables: Mapping[str, str]) -> Iterable[str]:
    """The values of variables whose names say that they are secret."""
    return (value.strip() for name, value in variables.items() if is_secret_name(name) and value.strip())
