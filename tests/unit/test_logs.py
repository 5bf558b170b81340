"""Log records: JSON lines in the file, secrets masked, control characters escaped, long values cut."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfyd.logs import MAX_VALUE

PROGRAM = """
import logging, sys
from pathlib import Path
from comfyd.logs import configure, get_logger
configure("INFO", sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None)
log = get_logger("comfyd.test")
exec(sys.stdin.read())
"""


def logged(body: str, fmt: str = "json", file: Path | None = None) -> str:
    """What a process that logs `body` writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, fmt, str(file or "")], input=body, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def record(body: str) -> dict[str, Any]:
    lines = logged(body).splitlines()
    assert len(lines) == 1, lines
    found: dict[str, Any] = json.loads(lines[0])
    return found


def test_a_record_has_event_level_logger_time_and_keys() -> None:
    found = record("log.info('instance ready', instance='comfyui/0', port=3001)")
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        "event": "instance ready", "level": "info", "logger": "comfyd.test", "instance": "comfyui/0", "port": 3001,
    }  # fmt: skip


@pytest.mark.parametrize(
    "key", ["token", "HF_TOKEN", "api_key", "apikey", "Authorization", "password", "client_secret"]
)
def test_secrets_are_masked_by_their_key(key: str) -> None:
    found = record(f"log.info('x', **{{{key!r}: 's3cret'}})")
    assert found[key] == "***"


@pytest.mark.parametrize(
    ("raw", "shown"), [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\rb", "a\\x0db"), ("a\u2028b", "a\\x2028b")]
)
def test_control_characters_cannot_forge_a_line(raw: str, shown: str) -> None:
    assert record(f"log.info('x', name={raw!r})")["name"] == shown


def test_long_values_are_cut() -> None:
    assert len(record("log.info('x', value='y' * 1_000_000)")["value"]) == MAX_VALUE + 1


def test_records_of_libraries_have_the_same_shape() -> None:
    found = record("logging.getLogger('aiohttp.server').warning('odd %s', 'thing')")
    assert (found["event"], found["level"], found["logger"]) == ("odd thing", "warning", "aiohttp.server")


def test_the_level_holds() -> None:
    assert (
        logged("log.debug('no'); logging.getLogger('x').debug('no'); logging.getLogger('aiohttp.access').info('no')")
        == ""
    )


def test_an_exception_carries_its_traceback_in_one_line() -> None:
    found = record("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')")
    assert "ZeroDivisionError" in found["exception"]


def test_the_file_gets_json_lines_by_append_whatever_stderr_shows(tmp_path: Path) -> None:
    file = tmp_path / "new/comfyd.log"
    text = logged("log.info('eins', name='主要')", "console", file)
    logged("log.info('zwei')", "console", file)
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["eins", "zwei"]
    assert lines[0]["name"] == "主要"
    assert "eins" in text
    assert not text.startswith("{")
    assert "\x1b" not in text


def test_auto_is_json_where_stderr_is_no_terminal() -> None:
    assert json.loads(logged("log.info('x')", "auto"))["event"] == "x"


def test_stderr_and_the_file_get_the_same_json(tmp_path: Path) -> None:
    """From several threads at once, each record whole and once in each of the two."""
    body = (
        "import threading\n"
        "def talk(name):\n    for n in range(200): log.info('x', who=name, n=n)\n"
        "threads = [threading.Thread(target=talk, args=(k,)) for k in 'abcd']\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    stderr = logged(body, file=tmp_path / "comfyd.log")
    told = [json.loads(line) for line in stderr.splitlines()]
    assert sorted((line["who"], line["n"]) for line in told) == [(k, n) for k in "abcd" for n in range(200)]
    assert sorted(stderr.splitlines()) == sorted((tmp_path / "comfyd.log").read_text().splitlines())


def test_the_file_is_also_reachable_by_its_older_name(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "comfyd.log"
    logged("log.info('first')", file=file)
    logged("log.info('second')", file=file)
    link = file.with_name("fastapi.log")
    assert link.is_symlink()
    assert [json.loads(line)["event"] for line in link.read_text().splitlines()] == ["first", "second"]


def test_a_file_of_the_older_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "fastapi.log").write_text("of an earlier image")
    logged("log.info('now')", file=tmp_path / "comfyd.log")
    assert json.loads((tmp_path / "fastapi.log").read_text())["event"] == "now"
    assert (tmp_path / "fastapi.log.1").read_text() == "of an earlier image"


def test_logging_goes_on_where_links_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "fastapi.log").mkdir()
    (tmp_path / "fastapi.log.1").mkdir()
    (tmp_path / "fastapi.log.1" / "kept").touch()
    stderr = logged("log.info('now')", file=tmp_path / "comfyd.log")
    assert [json.loads(line)["event"] for line in stderr.splitlines()] == ["no link to the log", "now"]


NEARLY_FULL = """
import resource
size = Path(sys.argv[2]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + {room}, resource.RLIM_INFINITY))
for n in range(5):
    log.info("does not fit", number=n, text="x" * 50)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.info("fits again")
log.info("and on")
"""


@pytest.mark.parametrize("room", [0, 20])
def test_a_full_disk_costs_lines_and_tears_none_into_another(tmp_path: Path, room: int) -> None:
    """With no room nothing is written; with little room the first line is cut short."""
    file = tmp_path / "comfyd.log"
    noise = logged("log.info('before')" + NEARLY_FULL.format(room=room), file=file)
    assert "Traceback" not in noise
    lines = file.read_text().splitlines()
    torn, whole = (lines[1:2], [lines[0], *lines[2:]]) if room else ([], lines)
    events = [json.loads(line)["event"] for line in whole]
    assert events == ["before", "log records lost: 5", "fits again", "and on"]
    assert all(len(line) == room for line in torn)


FORGED = '{"event": "forged", "level": "info"}'


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_value_can_forge_a_record(fmt: str) -> None:
    """What a child printed may stand in a reason; on a terminal records are lines, too."""
    body = f"log.info('x', reason='a\\n{FORGED}\\r\\n{FORGED}', problem=['b\\n{FORGED}'])"
    assert len(logged(body, fmt).splitlines()) == 1
