"""Collecting orphans. In a process of its own: a test process has children of its own."""

import subprocess
import sys

COLLECT = """
import os, signal
from comfyd.host import children, procfs

def ends_with(code):
    return os.spawnv(os.P_NOWAIT, "/bin/sh", ["sh", "-c", f"exit {code}"])

assert children.become_subreaper()
with children.birth() as awaited:
    mine = ends_with(7)
    awaited.add(mine)
others = [ends_with(9) for _ in range(20)]
living = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "600"])
try:
    for pid in (mine, *others):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert sorted(procfs.children_of(os.getpid())) == sorted([mine, living, *others])
    assert children.collect() == 20
    assert sorted(procfs.children_of(os.getpid())) == sorted([mine, living])
    assert children.collect() == 0
    assert children.bury(mine).si_status == 7
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(3)
        os._exit(0)
    while len(procfs.children_of(os.getpid())) > 1:
        children.collect()
finally:
    os.kill(living, signal.SIGKILL)
print("done")
"""
STRANGE = """
import os, signal
from comfyd.host import children

def orphan():
    "A living grandchild whose parent has gone: (pid of the parent, pid)."
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.pause()
        os.write(writer, str(child).encode())
        os._exit(0)
    return parent, int(os.read(reader, 20))

assert not children.nobody_strange()  # who gets no orphans cannot tell
assert children.become_subreaper()
assert children.nobody_strange()
with children.birth() as awaited:
    parent, strange = orphan()
    awaited.add(parent)
try:
    assert children.bury(parent).si_status == 0
    assert not children.nobody_strange()
finally:
    os.kill(strange, signal.SIGKILL)
os.waitid(os.P_PID, strange, os.WEXITED | os.WNOWAIT)
assert children.nobody_strange()  # dead, though not collected yet
print("done")
"""
OTHERWISE = """
import os
from comfyd.host import procfs
child = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "600"])
try:
    listed = procfs.children_of(os.getpid())
    procfs._lists_children = lambda: False
    assert procfs.children_of(os.getpid()) == listed == [child]
finally:
    os.kill(child, 9)
print("done")
"""


def in_a_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_an_orphan_that_lives_is_strange() -> None:
    in_a_process(STRANGE)


def test_only_the_dead_that_nobody_waits_for_are_collected() -> None:
    in_a_process(COLLECT)


def test_children_are_the_same_where_the_kernel_does_not_list_them() -> None:
    in_a_process(OTHERWISE)
