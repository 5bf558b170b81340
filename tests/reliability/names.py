"""The failpoints that the source names."""

import ast
from pathlib import Path

from tests.daemon import REPOSITORY


def failpoints(package: Path = REPOSITORY / "comfyd") -> frozenset[str]:
    """Every name that `failpoint(...)` is called with. Fails on a call whose name is not written out."""
    found = set()
    for path in sorted(package.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "failpoint":
                (name,) = call.args
                assert isinstance(name, ast.Constant), f"{path}:{call.lineno}: the name must be a literal"
                found.add(str(name.value))
    return frozenset(found)
