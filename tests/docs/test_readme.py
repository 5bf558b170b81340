"""README.md and README_zh.md: the same commands and headings; links that lead somewhere."""

from pathlib import Path

import pytest

from tests.docs.markdown import CHECKOUT, commands, headings, links

README = (CHECKOUT / "README.md").read_text()
README_ZH = (CHECKOUT / "README_zh.md").read_text()
PAGES = [CHECKOUT / "README.md", CHECKOUT / "README_zh.md", CHECKOUT / "CHANGELOG.md", *CHECKOUT.glob("docs/**/*.md")]


def test_the_first_two_commands_are_the_two_to_know() -> None:
    assert commands(README)[:2] == ["make demo", "make test"]


def test_both_languages_show_the_same_commands() -> None:
    assert commands(README) == commands(README_ZH)


def test_both_languages_have_the_same_outline() -> None:
    assert len(headings(README)) > 3
    assert headings(README) == headings(README_ZH)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_to_files(page: Path) -> None:
    missing = [target for target in links(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []


def test_the_paths_that_make_targets_name_exist() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    targets = {line.split(":")[0] for line in makefile.splitlines() if line and line[0].isalpha() and ":" in line}
    used = [c.split()[-1] for c in commands(README) if c.startswith("make ")]
    assert set(used) <= targets
