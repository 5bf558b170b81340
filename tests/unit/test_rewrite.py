"""The boundary rule of the rewrite, place by place, and that a second run changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyd.core.rewrite import rewrite, unsafe_target

T = "/workspace/.ComfyUI-comm.3"

CHANGED = [
    ("cd /ComfyUI", f"cd {T}"),
    ("cd /ComfyUI;", f"cd {T};"),
    ("/ComfyUI", T),
    ("/ComfyUI\n", f"{T}\n"),
    ("cd /ComfyUI\r\n", f"cd {T}\r\n"),
    ("\t/ComfyUI/main.py", f"\t{T}/main.py"),
    ("/ComfyUI/venv/bin/pip install x", f"{T}/venv/bin/pip install x"),
    ('cd "/ComfyUI"', f'cd "{T}"'),
    ("cd '/ComfyUI'", f"cd '{T}'"),
    ("x=`/ComfyUI/run`", f"x=`{T}/run`"),
    ("PATH=/ComfyUI/bin:$PATH", f"PATH={T}/bin:$PATH"),
    ("PATH=$PATH:/ComfyUI/bin", f"PATH=$PATH:{T}/bin"),
    ('PATH="${PATH}:/ComfyUI/bin"', f'PATH="${{PATH}}:{T}/bin"'),
    ("PYTHONPATH=lib:/ComfyUI", f"PYTHONPATH=lib:{T}"),
    ("PATH=/usr/bin:/ComfyUI", f"PATH=/usr/bin:{T}"),
    ("PATH=/ComfyUI:/ComfyUI/bin", f"PATH={T}:{T}/bin"),
    ("(/ComfyUI/x)", f"({T}/x)"),
    ("f(a,/ComfyUI)", f"f(a,{T})"),
    ("a;/ComfyUI/x", f"a;{T}/x"),
    ("a&/ComfyUI/x&", f"a&{T}/x&"),
    ("a&&/ComfyUI/x&&b", f"a&&{T}/x&&b"),
    ("a|/ComfyUI/x", f"a|{T}/x"),
    ("sed 's|/ComfyUI|x|'", f"sed 's|{T}|x|'"),
    ("sed 's#/ComfyUI#x#'", f"sed 's#{T}#x#'"),
    ("cat </ComfyUI/x", f"cat <{T}/x"),
    ("echo >/ComfyUI/x 2>/ComfyUI/y", f"echo >{T}/x 2>{T}/y"),
    ("{/ComfyUI,/b}", f"{{{T},/b}}"),
    ("{/b,/ComfyUI}", f"{{/b,{T}}}"),
    ("[/ComfyUI]", f"[{T}]"),
    ("[ -d /ComfyUI ]", f"[ -d {T} ]"),
    ("#/ComfyUI", f"#{T}"),
    ("#!/ComfyUI/venv/bin/python", f"#!{T}/venv/bin/python"),
    ("${V:-/ComfyUI}", f"${{V:-{T}}}"),
    ("${V-/ComfyUI}", f"${{V-{T}}}"),
    ("${V:=/ComfyUI}", f"${{V:={T}}}"),
    ("${V:+/ComfyUI}", f"${{V:+{T}}}"),
    ('${V:-"/ComfyUI"}', f'${{V:-"{T}"}}'),
    ("git -C/ComfyUI pull", f"git -C{T} pull"),
    ("git -C /ComfyUI pull", f"git -C {T} pull"),
    ("tar -xf a --directory=/ComfyUI", f"tar -xf a --directory={T}"),
    ("rm -rf /ComfyUI*", f"rm -rf {T}*"),
    ("ls /ComfyUI?", f"ls {T}?"),
    ("cp /ComfyUI\\\n  /x", f"cp {T}\\\n  /x"),
    ("git clone https://github.com/a/ComfyUI.git /ComfyUI", f"git clone https://github.com/a/ComfyUI.git {T}"),
    ('{"path":"/ComfyUI/models"}', f'{{"path":"{T}/models"}}'),
    ('echo "{\\"p\\": \\"/ComfyUI/models\\"}"', f'echo "{{\\"p\\": \\"{T}/models\\"}}"'),
    ('open(f"/ComfyUI/{x}")', f'open(f"{T}/{{x}}")'),
    ("x = r'/ComfyUI'", f"x = r'{T}'"),
    ("x=$'/ComfyUI'", f"x=$'{T}'"),
    ("/workspace/ComfyUI/main.py", f"{T}/main.py"),
    ("cd /workspace/ComfyUI", f"cd {T}"),
    ('V="${V:-/workspace/ComfyUI}"', f'V="${{V:-{T}}}"'),
    ("base_path: /ComfyUI", f"base_path: {T}"),
]

UNCHANGED = [
    "https://github.com/comfyanonymous/ComfyUI.git",
    "https://github.com/comfyanonymous/ComfyUI",
    "git@github.com:/ComfyUI",
    "user@host:/ComfyUI/x",
    "scp -r host:/ComfyUI/models .",
    "rsync -a 'host.example:/ComfyUI/' .",
    "R=user@host:/ComfyUI",
    "R=host:/ComfyUI",
    '"$U@$H:/ComfyUI"',
    "custom_nodes/ComfyUI-Manager",
    "/custom_nodes/ComfyUI-Manager/x",
    "$HOME/ComfyUI",
    "${HOME}/ComfyUI/x",
    '"$HOME"/ComfyUI',
    '"${HOME}"/ComfyUI/x',
    '"$(pwd)"/ComfyUI',
    "$(pwd)/ComfyUI",
    "`pwd`/ComfyUI",
    "./ComfyUI",
    "../ComfyUI",
    "~/ComfyUI",
    "/workspace/ComfyUI-x",
    "/workspace/ComfyUI-comm/venv",
    "/ComfyUI-Manager",
    "/ComfyUI_x",
    "/ComfyUI2",
    "/ComfyUI.git",
    "/opt/ComfyUI",
    "/opt/workspace/ComfyUI",
    "//ComfyUI",
    "file:///ComfyUI",
    "x/ComfyUI",
    "/comfyui",
    "--option/ComfyUI",
    "a-b/ComfyUI",
    "ssh://user@host:/ComfyUI",
]


@pytest.mark.parametrize(("before", "after"), CHANGED)
def test_changes_what_is_a_path_of_its_own(before: str, after: str) -> None:
    done = rewrite(before, T)
    assert done.text == after
    assert done.count == after.count(T)
    assert rewrite(after, T).text == after


@pytest.mark.parametrize("text", UNCHANGED)
def test_leaves_everything_else(text: str) -> None:
    assert rewrite(text, T).text == text
    assert rewrite(f"x {text} y", T).text == f"x {text} y"


@pytest.mark.parametrize("root", ["", "/ComfyUI", "/workspace/ComfyUI", "/ComfyUI/ComfyUI", "/a/ComfyUI/b"])
def test_a_root_that_itself_holds_the_word(root: str) -> None:
    target = f"{root}/workspace/.ComfyUI-comm.1"
    once = rewrite('cd /ComfyUI && "/ComfyUI/venv/bin/pip" :/ComfyUI:/ComfyUI', target).text
    assert once == f'cd {target} && "{target}/venv/bin/pip" :{target}:{target}'
    assert rewrite(once, target).text == once


def test_another_generation_is_not_the_target() -> None:
    one, ten = "/ComfyUI/workspace/.ComfyUI-comm.1", "/ComfyUI/workspace/.ComfyUI-comm.10"
    text = rewrite(f"cd {ten}", one).text
    assert rewrite(text, one).text == text


PIECES = st.sampled_from(
    ["/ComfyUI", "/workspace", "/workspace/ComfyUI", T, "host", "user@", "$PATH", "${V:-", "}", "-C", "PATH=", "x",
     *"'\"`=:(,;&|<>{[#!])}*?\\/ \n.-@$a0", "f", "cd /", "git clone ", "\r\n", "é"]
)  # fmt: skip
TARGETS = st.sampled_from([T, "/ComfyUI/workspace/.ComfyUI-a.1", "/workspace/ComfyUI/.ComfyUI-a.2", "/t/.ComfyUI-b.3"])


@settings(max_examples=1500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), TARGETS)
def test_twice_is_once(text: str, target: str) -> None:
    once = rewrite(text, target)
    again = rewrite(once.text, target)
    assert again.text == once.text
    assert again.count == 0


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="C"), max_size=60))
def test_text_without_the_word_is_untouched(text: str) -> None:
    assert rewrite(text, T).text == text


@pytest.mark.parametrize(
    "script",
    [
        "cd /\ngit clone https://github.com/comfyanonymous/ComfyUI.git\n",
        "cd / && git clone --depth 1 -b v1 https://github.com/a/ComfyUI",
        "cd / ; git clone \\\n  ${COMFYUI_REPOSITORY}\n",
        "(cd /; git clone https://h/ComfyUI.git)",
        "git -C / clone https://h/ComfyUI.git",
        "pushd / >/dev/null\ngit clone https://h/x.git ComfyUI",
        "cd /\necho hi\nif true; then git clone https://h/ComfyUI.git; fi",
    ],
)
def test_a_clone_into_the_root_folder_is_reported(script: str) -> None:
    [problem] = rewrite(script, T).problems
    assert "git clone URL /ComfyUI" in problem


@pytest.mark.parametrize(
    "script",
    [
        "cd / && git clone https://h/ComfyUI.git /ComfyUI",
        "cd /opt && git clone https://h/ComfyUI.git",
        "cd /\ncd /ComfyUI\ngit clone https://h/Manager.git custom_nodes/Manager",
        "# cd /\ngit clone https://h/ComfyUI.git /ComfyUI",
        "cd /\n# git clone https://h/ComfyUI.git",
        "git clone https://h/ComfyUI.git",
        "cd /\ngit -C /opt clone https://h/ComfyUI.git",
        "echo \"it's\" unbalanced ' quote",
    ],
)
def test_harmless_clones_are_not_reported(script: str) -> None:
    assert rewrite(script, T).problems == ()


def test_a_path_that_scripts_do_not_survive_is_named() -> None:
    assert unsafe_target(T) is None
    for bad in ("/a b/.ComfyUI-x.1", "/a'/x", "/a$(id)/x", "/a;b", "relative", "/a\n/b", "/a\n"):
        assert unsafe_target(bad) is not None
