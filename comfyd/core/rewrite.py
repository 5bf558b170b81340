"""Build-script text -> text: `/ComfyUI` becomes the path of the generation that is being built.

Owns: the boundary rule of the contract (spec section 4) and the check for clones that no rewrite can catch.
Must not: touch files or know where the target lies. Running it again with the same target changes nothing.
"""

import re
import shlex
from dataclasses import dataclass

_AFTER = r"""(?=[/\s'"`;)&|:}\],<>#*?\\]|\Z)"""
_BEFORE = frozenset("'\"`=:(,;&|<>{[#!")
_QUOTES = "'\"`"
_EXPANSION = re.compile(r"\$\{[A-Za-z_]\w*(?:\[[^\]]*\])?:?[-+=]\Z")
_OPTION = re.compile(r"(?:\A|[\s'\"`;(&|=])-[A-Za-z]\Z")
_STRING_PREFIX = re.compile(r"(?:\A|[^\w$}])(?:\$|[fFrRbBuU]{1,2})\Z")
_REMOTE = re.compile(r"(?:[\w.}$-]@[^/\s'\"`=:(,;&|<>]+|(?P<word>(?:\A|[\s'\"`=])[A-Za-z0-9][\w.-]*)):\Z")
_PATH_LIST = re.compile(r"(?:\A|\W)\w*PATH=[\"']?[A-Za-z0-9][\w.-]*:\Z")
_LOOK_BACK = 256
_SAFE_TARGET = re.compile(r"/[\w./+@%,-]*\Z")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new text, how many places changed, and what no rewrite can put right (one sentence each)."""

    text: str
    count: int
    problems: tuple[str, ...] = ()


def rewrite(text: str, target: str) -> Rewritten:
    """Replace `/ComfyUI` (and the older `/workspace/ComfyUI`) by `target` wherever it is a path of its own."""
    known = re.compile(rf"(?P<done>{re.escape(target)}(?![\w.-]))|(?:/workspace)?/ComfyUI{_AFTER}")
    parts: list[str] = []
    end = count = 0
    for match in known.finditer(text):
        if match["done"] is not None or not _stands_alone(text, match.start()):
            continue
        parts += [text[end : match.start()], target]
        end = match.end()
        count += 1
    parts.append(text[end:])
    return Rewritten("".join(parts), count, tuple(_problems(text)))


def unsafe_target(target: str) -> str | None:
    """Why scripts cannot be rewritten to this path (None: they can). Scripts often leave paths unquoted."""
    if _SAFE_TARGET.match(target):
        return None
    return f"the workspace path {target!r} holds characters that unquoted paths in build scripts do not survive"


def _stands_alone(text: str, start: int) -> bool:
    before = text[max(0, start - _LOOK_BACK, text.rfind("\n", 0, start) + 1) : start]
    if _REMOTE.search(before) and not _PATH_LIST.search(before):
        return False
    if before.endswith(tuple(_QUOTES)):
        return _opens(before)
    return _boundary(before)


def _boundary(before: str) -> bool:
    if not before or before[-1].isspace() or before[-1] in _BEFORE:
        return True
    return bool(_EXPANSION.search(before) or _OPTION.search(before))


def _opens(before: str) -> bool:
    """Whether the quotes at the end open a word: `"$HOME"/ComfyUI` is one path, `x="/ComfyUI"` is another."""
    rest = before.rstrip(_QUOTES + "\\")
    return _boundary(rest) or bool(_STRING_PREFIX.search(rest))


def _problems(text: str) -> list[str]:
    """Clones that would create /ComfyUI (or any tree) directly below / because no path names the place."""
    found: list[str] = []
    at_root = False
    for number, command in _commands(text):
        words = _words(command)
        verb = words[0] if words else ""
        if verb in ("cd", "pushd"):
            at_root = _is_root([w for w in words[1:] if w not in ("--", "-P", "-L")])
        elif "git" in words[:3] and "clone" in words:
            problem = _clone_problem(words[words.index("git") + 1 :], at_root)
            if problem:
                found.append(f"line {number}: {problem}")
    return found


def _is_root(words: list[str]) -> bool:
    return bool(words) and words[0] in ("/", "//", "/.")


def _clone_problem(words: list[str], at_root: bool) -> str | None:
    options, arguments = words[: words.index("clone")], words[words.index("clone") + 1 :]
    if "-C" in options:
        at_root = _is_root(options[options.index("-C") + 1 :])
    if not at_root:
        return None
    plain = _positional(arguments)
    if len(plain) == 1 or (len(plain) > 1 and plain[1].removeprefix("./").rstrip("/") == "ComfyUI"):
        return (
            "`cd /` followed by `git clone` into its default folder cannot be moved to another place; "
            "write `git clone URL /ComfyUI` instead"
        )
    return None


_WITH_VALUE = frozenset(
    {"-b", "--branch", "-o", "--origin", "-u", "--upload-pack", "-c", "--config", "--depth", "--reference", "-j",
     "--template", "--filter", "--jobs", "--separate-git-dir", "--shallow-since", "--shallow-exclude",
     "--server-option", "--bundle-uri"}
)  # fmt: skip


def _positional(words: list[str]) -> list[str]:
    plain: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _WITH_VALUE:
            skip = True
        elif not word.startswith("-"):
            plain.append(word)
    return plain


def _commands(text: str) -> list[tuple[int, str]]:
    """(line number, simple command) in order; continued lines are joined, comments dropped."""
    commands: list[tuple[int, str]] = []
    joined, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        first = first if joined else number
        joined += line.rstrip("\r")
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        code = re.sub(r"(?:\A|(?<=\s))#.*", "", joined)
        commands += [(first, part.strip(" \t(){}!")) for part in re.split(r"&&|\|\||[;|&\n]", code)]
        joined = ""
    return [(number, part) for number, part in commands if part]


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    while words and (words[0] in ("then", "do", "else", "sudo", "exec", "if") or re.match(r"[A-Za-z_]\w*=", words[0])):
        words = words[1:]
    return words
