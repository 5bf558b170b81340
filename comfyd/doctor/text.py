"""A diagnosis as lines for people."""

from collections.abc import Iterator

from comfyd.model.finding import Diagnosis


def lines_of(diagnosis: Diagnosis) -> Iterator[str]:
    """`level  name  subject: message`, hints below what is not fine."""
    for one in diagnosis.findings:
        subject = f"{one.subject}: " if one.subject else ""
        yield f"{one.level:<8} {one.name:<12} {subject}{one.message}"
        if one.hint and one.level != "ok":
            yield f"{'':<21} -> {one.hint}"


def verdict(diagnosis: Diagnosis) -> str:
    """`2 errors, 1 warning`, or that all is well."""
    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    if not errors and not warnings:
        return "all is well"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
