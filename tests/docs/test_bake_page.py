"""docs/image.md names every argument, variable, group, target and port."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs/image.md").read_text()
BAKE = (CHECKOUT / "docker-bake.hcl").read_text()
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()


def test_every_argument_of_the_dockerfile_is_explained() -> None:
    table = PAGE.partition("### Arguments")[2].partition("## Running")[0]
    first_columns = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    explained = {name for column in first_columns for name in re.findall(r"`([A-Z_]+)`", column)}
    assert explained == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_every_name_of_the_bake_file_is_on_the_page() -> None:
    named = re.findall(r'^(?:variable|group|target) "([^_"][^"]*)"', BAKE, re.MULTILINE)
    assert len(named) > 20
    assert [name for name in named if f"`{name}`" not in PAGE] == []


def test_versions_and_ports_on_the_page_are_those_of_the_files() -> None:
    versions = set(re.findall(r'^\s+\w+\s+= "([^"$ ]*\d\.\d[^"$]*)"', BAKE, re.MULTILINE))
    assert len(versions) >= 6
    assert [value for value in versions if value not in PAGE] == []
    (exposed,) = re.findall(r"^EXPOSE (.*)", DOCKERFILE, re.MULTILINE)
    assert [port for port in exposed.split() if port not in PAGE] == []
