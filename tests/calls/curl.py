"""Documented command lines, run by a shell with the real curl exactly as written; only ports are moved."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CURLRC = 'silent\nshow-error\nnoproxy = "*"\nmax-time = 55\nwrite-out = "\\n%{http_code}"\n'
"""Given through CURL_HOME, so that a line needs no more options to be a test."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What curl printed. log: its standard error."""

    status: int
    text: str
    log: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Curl:
    """moved: port as documented -> port of this test."""

    home: Path
    moved: dict[int, int]

    def as_here(self, line: str) -> str:
        ports = "|".join(str(port) for port in self.moved)
        return re.sub(rf"\b({ports})\b", lambda found: str(self.moved[int(found[0])]), line)

    def __call__(self, line: str) -> Reply:
        """Run one line by `bash -c`. Raises AssertionError if curl itself fails."""
        assert line.startswith("curl "), line
        (self.home / ".curlrc").write_text(CURLRC)
        ran = subprocess.run(
            ["bash", "-c", self.as_here(line)], env={**os.environ, "CURL_HOME": str(self.home)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, (line, ran.returncode, ran.stderr)
        text, _, status = ran.stdout.rpartition("\n")
        return Reply(int(status), text, ran.stderr)

    def get(self, path: str) -> Any:
        """The body of a GET that has to be a 200."""
        reply = self(f'curl "http://localhost:8001{path}"')
        assert reply.status == 200, (path, reply)
        return reply.json

    def post(self, path: str, body: Any = None) -> Reply:
        if body is None:
            return self(f'curl -X POST "http://localhost:8001{path}"')
        data = (body if isinstance(body, str) else json.dumps(body)).replace("'", "'\\''")
        kind = '-H "Content-Type: application/json"'
        return self(f"curl -X POST \"http://localhost:8001{path}\" {kind} -d '{data}'")
