"""The reading of ComfyUI's words: refusals, ends, outputs. Whatever comes, nothing is raised."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyd.dispatch.comfy_history import MAX_MESSAGE, MAX_TEXT, OutputFile, judge, refusal


def entry(*messages: list[Any], status: str = "success", **outputs: Any) -> dict[str, Any]:
    return {"outputs": outputs, "status": {"status_str": status, "completed": True, "messages": list(messages)}}


def error(kind: str, message: str) -> dict[str, Any]:
    data = {"node_id": "4", "node_type": "KSampler", "exception_type": kind, "exception_message": message}
    return entry(["execution_error", data], status="error")


def test_every_dict_with_a_file_name_counts_whatever_its_list_is_called() -> None:
    verdict = judge(
        entry(
            **{
                "1": {"images": [{"filename": "a.png", "subfolder": "s", "type": "temp"}], "animated": [True]},
                "2": {"gifs": [{"filename": "b.mp4", "type": "output", "fullpath": "/etc/passwd"}]},
                "3": {"audio": [{"filename": "c.flac", "subfolder": ""}, {"nothing": 1}, 7], "text": ["t", "u"]},
            }
        )
    )
    assert verdict.kind == "success"
    assert verdict.files == (
        OutputFile("1", "a.png", "s", "temp"),
        OutputFile("2", "b.mp4", "", "output"),
        OutputFile("3", "c.flac", "", "output"),
    )
    assert verdict.texts == ("t", "u")


def test_messages_count_more_than_a_stale_status() -> None:
    assert judge(entry(["execution_error", {"exception_type": "X"}], status="success")).kind == "error"
    assert judge(entry(["execution_interrupted", {}], status="error")).kind == "interrupted"
    assert judge(entry(["execution_start", {}], status="error")).kind == "error"
    assert judge({"outputs": {}, "status": None}).kind == "success"


@pytest.mark.parametrize(
    ("kind", "message", "device", "poisoned", "memory"),
    [
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", True, True, False),
        ("torch.AcceleratorError", "CUDA error: device-side assert triggered", True, True, False),
        ("RuntimeError", "CUDA error: no kernel image is available for execution on the device", True, False, False),
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20 GiB", False, False, True),
        ("torch.OutOfMemoryError", "Allocation on device", False, False, True),
        ("torch.AcceleratorError", "CUDA error: out of memory", False, False, True),
        ("ValueError", "shapes do not match", False, False, False),
    ],
)
def test_errors_of_the_device_are_told_from_those_of_the_graph(
    kind: str, message: str, device: bool, poisoned: bool, memory: bool
) -> None:
    verdict = judge(error(kind, message))
    assert verdict.message == f"node 4 (KSampler): {kind}: {message}"
    assert (verdict.device, verdict.poisoned, verdict.memory) == (device, poisoned, memory)


def test_long_words_are_cut() -> None:
    assert len(judge(error("E", "x" * 10_000)).message) == MAX_MESSAGE
    assert len(refusal({"error": {"message": "x" * 10_000}}, 400)) == MAX_MESSAGE
    assert sum(map(len, judge(entry(**{"1": {"text": ["x" * MAX_TEXT] * 3}})).texts)) == MAX_TEXT


def test_a_refusal_names_node_input_and_kind() -> None:
    problem = {"type": "value_not_in_list", "message": "Value not in list", "details": "ckpt_name: 'a' not in []"}
    answer = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"4": {"errors": [problem], "dependent_outputs": ["9"], "class_type": "CheckpointLoader"}},
    }
    assert refusal(answer, 400) == (
        "ComfyUI refused the workflow: Prompt outputs failed validation. "
        "node 4 (CheckpointLoader): Value not in list: ckpt_name: 'a' not in [] [value_not_in_list]"
    )
    assert refusal({"error": "plain text"}, 400).endswith("plain text")
    assert refusal([], 413) == "ComfyUI refused the workflow: POST /prompt was answered with 413"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["outputs", "status", "messages", "images", "filename", "error", "node_errors", "errors", "1"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_no_answer_breaks_the_reading(value: Any) -> None:
    assert isinstance(refusal(value, 400), str)
    if isinstance(value, dict):
        assert judge(value).kind in ("success", "error", "interrupted")
