"""Nothing secret is left in what is masked, and what is not secret stays readable."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyd.core.mask import MASK, is_secret_name, mask_data, mask_text, mask_variables, secret_values

SECRET = "s3cr3tV4lue9"

PLACES = [
    "https://user:{}@example.org/x",
    "https://{}@example.org/x",
    "postgresql://comfyd:{}@db:5432/queue",
    "https://example.org/model.safetensors?token={}&x=1",
    "wss://example.org/a/b?{}",
    'Authorization: Bearer {}',
    'authorization: Basic {}"',
    "HF_TOKEN={}",
    "export CIVITAI_TOKEN='{}'",
    'MY_API_KEY="{}" python main.py',
    "main.py --api-key {} --cpu",
    "main.py --comfy-api-key={}",
    '"extra_args": ["--hub-token", "{}", "--cpu"]',
    '{{"headers": {{"X-Whatever": "{}", "Accept": "*/*"}}}}',
    '{{"env": {{"HF_TOKEN": "{}"}}}}',
    '{{"password" : "{}"}}',
    "{{'client_secret': '{}'}}",
    "password: {}",
    "loaded with token={}, going on",
    "hf_{}",
    "ghp_{} is used",
]  # fmt: skip
SECRETS = st.from_regex(r"[A-Za-z0-9_]{8,40}", fullmatch=True)


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRETS)
def test_what_looks_like_a_secret_is_masked(place: str, secret: str) -> None:
    rest = place.format("")
    if secret in rest:
        return
    masked = mask_text(place.format(secret))
    assert secret not in masked, masked
    assert MASK in masked


@given(st.text(max_size=50), st.text(max_size=50), SECRETS)
def test_a_known_secret_is_masked_wherever_it_stands(before: str, after: str, secret: str) -> None:
    assert secret not in mask_text(before + secret + after, [secret, "short", "x"])


@pytest.mark.parametrize(
    "text",
    [
        "comfyui/0 is ready on port 3001",
        '{"key": 5, "instances": [{"id": 0, "port": 3001, "extra_args": "--lowvram"}]}',
        "https://github.com/owner/repo",
        "Traceback (most recent call last):",
        "File \"/workspace/ComfyUI-comm/main.py\", line 5",
        "ModuleNotFoundError: No module named 'keyring'",
        "2026-01-01T00:00:00Z transition from=starting to=ready",
        "prompt --lowvram --cpu",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_text(text, ["x", "0"]) == text


def test_data_is_masked_by_name_and_by_text() -> None:
    given_data = {
        "key": "comfyui/0",
        "models": [{"url": f"https://h/x?t={SECRET}", "headers": {"X-A": SECRET}, "token_env": "MY"}],
        "env": {"HF_TOKEN": SECRET, "PLAIN": "yes"},
        "last_lines": [f"using {SECRET}"],
        "password": 12345,
        "token": None,
        "ready": True,
    }
    masked = mask_data(given_data, [SECRET])
    assert SECRET not in json.dumps(masked)
    assert masked["key"] == "comfyui/0"
    assert masked["env"] == {"HF_TOKEN": MASK, "PLAIN": "yes"}
    assert masked["password"] == MASK
    assert (masked["token"], masked["ready"]) == (None, True)


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_masked_data_has_the_shape_of_the_data(value: Any) -> None:
    masked = mask_data(value)
    json.dumps(masked)
    assert type(masked) is type(value) or masked == MASK


def test_text_that_was_json_stays_json() -> None:
    text = json.dumps({"a": {"api_key": 'x"y\\', "url": "https://u:p@h/?q=1"}, "headers": {"A": "b"}, "z": [1]})
    again = json.loads(mask_text(text))
    assert again["z"] == [1]
    assert not re.search(r"u:p|q=1|x\"y", json.dumps(again))


def test_variables() -> None:
    names = {"HF_TOKEN": "aaaa", "COMFYD_PORT": "8001", "AWS_SECRET_ACCESS_KEY": "bbbb", "db_password": " cccc "}
    assert mask_variables(names) == {n: "8001" if n == "COMFYD_PORT" else MASK for n in names}
    assert sorted(secret_values(names)) == ["aaaa", "bbbb", "cccc"]
    assert not is_secret_name("COMFYUI_ENVIRONMENT")
