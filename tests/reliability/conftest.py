"""What the runs of this tier tell about themselves, printed once they are over."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for one in terminalreporter.getreports(outcome):
            for name, text in getattr(one, "user_properties", ()):
                if name == "report" and one.when == "call":
                    terminalreporter.section(f"{one.nodeid.rpartition('::')[2]} {outcome}")
                    terminalreporter.write_line(str(text))
