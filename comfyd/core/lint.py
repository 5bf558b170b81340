"""What ComfyUI's argparse would make of arguments, said before the start: options it does not list, options that
exclude each other. Warnings only: a hidden option is still an option.

Owns: the groups of options that exclude each other. Must not: refuse anything (config_args does).
"""

import difflib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from comfyd.model.base import Condition

EXCLUSIVE_GROUPS = (
    ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"),
    ("--cuda-malloc", "--disable-cuda-malloc"),
    ("--force-fp32", "--force-fp16"),
    (
        "--fp32-unet", "--fp64-unet", "--bf16-unet", "--fp16-unet", "--fp8_e4m3fn-unet", "--fp8_e5m2-unet",
        "--fp8_e8m0fnu-unet",
    ),
    ("--fp16-vae", "--fp32-vae", "--bf16-vae"),
    (
        "--fp8_e4m3fn-text-enc", "--fp8_e5m2-text-enc", "--fp16-text-enc", "--fp32-text-enc", "--bf16-text-enc",
    ),
    ("--cache-classic", "--cache-lru", "--cache-none", "--cache-ram"),
    (
        "--use-split-cross-attention", "--use-quad-cross-attention", "--use-pytorch-cross-attention",
        "--use-sage-attention", "--use-flash-attention",
    ),
    ("--force-upcast-attention", "--dont-upcast-attention"),
)  # fmt: skip
"""Mutually exclusive groups of ComfyUI's own parser; two of one group end it with exit code 2."""
EXCLUSIVE_FLAGS = EXCLUSIVE_GROUPS[0]


def flags_among(args: Iterable[str]) -> list[str]:
    """The options of a command line without their values; what follows a bare `--` is none."""
    flags: list[str] = []
    for word in args:
        if word == "--":
            break
        if word.startswith("--"):
            flags.append(word.partition("=")[0])
    return flags


def meanings(flag: str, known: Collection[str]) -> list[str]:
    """The options that argparse takes `flag` for: itself, else every one that it begins (it needs exactly one)."""
    return [flag] if flag in known else sorted(name for name in known if name.startswith(flag))


def rivals(args: Iterable[str], known: Collection[str] = ()) -> list[tuple[str, ...]]:
    """For each group of which more than one option is given: those options, as written first."""
    flags = flags_among(args)
    if len(flags) < 2:
        return []
    listed = known or [flag for group in EXCLUSIVE_GROUPS for flag in group]
    given: dict[str, str] = {}
    for flag in flags:
        meant = meanings(flag, listed)
        if len(meant) == 1:
            given.setdefault(meant[0], flag)
    groups = (tuple(written for meant, written in given.items() if meant in group) for group in EXCLUSIVE_GROUPS)
    return [group for group in groups if len(group) > 1]


def unknown_flags(args: Iterable[str], known: Collection[str]) -> list[str]:
    """Options that the `--help` of an environment does not list, or that may mean several. None if nothing is known."""
    flags = dict.fromkeys(flags_among(args)) if known else {}
    return [flag for flag in flags if len(meanings(flag, known)) != 1]


def suggestion(flag: str, known: Collection[str]) -> str:
    """What may have been meant."""
    several = meanings(flag, known)
    close = several or difflib.get_close_matches(flag, sorted(known), n=1)
    if close:
        return f"did you mean {' or '.join(close[:5])}?"
    return "remove it, or look for its name in the environment's `main.py --help`"


@lru_cache(maxsize=1024)
def argument_warnings(args: Sequence[str], environment: str, known: frozenset[str]) -> tuple[Condition, ...]:
    """Warnings about one command line. known: what the `--help` of the installed environment lists."""
    found: list[Condition] = []
    for flag in unknown_flags(args, known):
        what = "lists several options that it may mean" if meanings(flag, known) else "does not list it"
        message = f"{flag}: the --help of environment {environment} {what}, so ComfyUI may end at once (exit code 2)"
        found.append(Condition("argument_warning", "unknown_flag", message, suggestion(flag, known)))
    for group in rivals(args, known):
        message = f"{' and '.join(group)} exclude each other: ComfyUI will not start (exit code 2)"
        found.append(Condition("argument_warning", "exclusive_flags", message, "keep one of them in extra_args"))
    return tuple(found)
