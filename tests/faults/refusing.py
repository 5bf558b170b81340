"""Executes what follows in a process tree where seccomp refuses system calls: `refusing.py 434,424 ERRNO ARGV...`

As a strict sandbox, or a kernel that does not have them yet, does. Python's own library alone.
"""

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def refuse(numbers: list[int], error: int) -> None:
    """For this process and all that descends from it, for good."""
    program = instruction(LOAD, 0, 0, 0)  # the number of the system call
    for left, number in zip(range(len(numbers) - 1, -1, -1), numbers, strict=True):
        program += instruction(JUMP_IF_EQUAL, left + 1, 0, number)
    program += instruction(RETURN, 0, 0, ALLOW) + instruction(RETURN, 0, 0, REFUSE | error)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(header), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def main() -> None:
    refuse([int(word) for word in sys.argv[1].split(",")], int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
