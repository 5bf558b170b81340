"""How a run ended, in words that say what to do: reason and hint of `backoff`, `failed` and `stopped`, and the message
of ComfyUI's argument parser. Pure; the facts are ExitInfo."""

from comfyd.model.base import Condition
from comfyd.model.observed import ExitInfo

BAD_ARGUMENTS_EXIT = 2
QUOTED = 200
ENDED_BY_US = {
    "unresponsive": "the end of its log shows what it did last",
    "device_errors": "`nvidia-smi` and the kernel log tell whether the GPU is lost",
    "not_ready_in_time": "its log shows what it waits for; `probe.startup_deadline_s` gives it longer",
}

_REFUSALS = {
    "ENOENT": "what the message names is missing: `comfyd env install` builds it anew; or correct `command`",
    "EACCES": "make what the message names readable and executable for the user that comfyd runs as",
    "EPERM": "the system forbids it to the user that comfyd runs as: look at its capabilities and mounts",
    "ENOEXEC": "the program is not for this machine, or its first line names no program",
    "E2BIG": "its arguments or variables are too long: shorten `extra_args` or `env`",
    "EAGAIN": "no more processes are allowed: raise pids.max of the container or `ulimit -u`",
    "EMFILE": "too many open files: raise `ulimit -n` of the daemon",
    "ENFILE": "the system has too many open files: raise fs.file-max",
    "ENOMEM": "there is no memory for another process: stop something or add memory",
    "ENOSPC": "the disk is full: free space; `comfyd doctor` shows which one",
    "EROFS": "the disk is read-only: mount it writable",
    "EEXIST": "a file stands where a folder belongs: move what the message names away",
    "ENOTDIR": "a file stands where a folder belongs: move what the message names away",
    "ELOOP": "its log file is a link, which is not followed: remove the link",
}
_SIGNS = (
    ("cuda out of memory", "the GPU has too little memory: `--lowvram`, fewer instances on it, or `gpu_exclusive`"),
    ("outofmemoryerror", "the GPU has too little memory: `--lowvram`, fewer instances on it, or `gpu_exclusive`"),
    ("memoryerror", "the machine has too little memory: stop something or add memory"),
    ("modulenotfounderror", "a Python package is missing: `comfyd env install` builds the environment anew"),
    ("importerror", "a Python package does not fit: `comfyd env install` builds the environment anew"),
    ("address already in use", "its port is taken: `comfyd doctor` shows by whom"),
    ("no nvidia driver", "no GPU is visible: give the container one, or add `--cpu` to `extra_args`"),
    ("torch not compiled with cuda", "this torch knows no GPU: add `--cpu` to `extra_args`, or install another one"),
    ("no space left on device", "the disk is full: free space; `comfyd doctor` shows which one"),
    ("permission denied", "make what its log names accessible for the user that comfyd runs as"),
)


def exit_reason(last: ExitInfo) -> str:
    """oom | unresponsive | device_errors | not_ready_in_time | no_resources | spawn_refused | crashed."""
    if last.short:
        return "no_resources"
    return last.reason or ("spawn_refused" if last.errno else "crashed")


def exit_hint(last: ExitInfo) -> str:
    """What to do about it. Never empty."""
    if last.errno:
        return _REFUSALS.get(last.errno, "correct what the message names; `comfyd restart` tries at once")
    if last.reason in ENDED_BY_US:
        return ENDED_BY_US[last.reason]
    if last.oom:
        return "the machine or the container has too little memory: run fewer instances, or give it more"
    if bad_arguments(last) is not None:
        return "correct extra_args; edits apply at once"
    text = "\n".join(last.last_lines).lower()
    sign = next((hint for word, hint in _SIGNS if word in text), None)
    if sign is not None:
        return sign
    if last.signal == "SIGKILL":
        return "somebody killed it; was it the kernel for memory? `dmesg` tells. `comfyd restart` starts it at once"
    return "read the end of its log; `comfyd restart` starts it at once"


def exit_text(last: ExitInfo) -> str:
    """`exit code 1, last line: ...`: one phrase with what its log ends with."""
    line = next((line.strip() for line in reversed(last.last_lines) if line.strip()), "")
    if not line or last.errno:
        return last.text()
    return f"{last.text()}; last line: {line[:QUOTED]}"


def bad_arguments(last: ExitInfo) -> Condition | None:
    """argparse exits 2 and prints `<prog>: error: <message>`."""
    if last.code != BAD_ARGUMENTS_EXIT:
        return None
    quoted = next((line for line in reversed(last.last_lines) if ": error: " in line), None)
    if quoted is None:
        return None
    return Condition("bad_arguments", "exit_2", quoted.strip(), "correct extra_args; edits apply at once", last.wall)
