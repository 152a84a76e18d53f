"""What the whole suite shares: the contract suite's table, printed whenever the contract tests have run."""

import logging
import re
from collections import defaultdict

import pytest
from hypothesis import settings

# A loaded machine is slow, which is no property of the code.
settings.register_profile("goblin", deadline=None)
settings.load_profile("goblin")

_PARAMETER = re.compile(r"\[(?P<before>.*-)?(?P<cloud>localcloud|google)(?P<after>-.*)?\]$")
_CLOUDS = ("localcloud", "google")


class _Louder(logging.Handler):
    """Raises a failed assertion again where the program has caught and logged it: isolation must hide no test."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(failed := record.exc_info[1], AssertionError):
            raise failed


def pytest_configure() -> None:
    """Let an assertion of a fake or a simulated promise fail its test, whatever service called it."""
    logging.getLogger("goblin").addHandler(_Louder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start first what takes its turn in one process, so that nobody waits for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print tests x clouds, and each difference with its reason."""
    rows: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: {cloud: defaultdict(int) for cloud in _CLOUDS})
    differences: dict[str, list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "xfailed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = _PARAMETER.search(report.nodeid)
            if found is None or "tests/contract/" not in report.nodeid:
                continue
            file, test = report.nodeid.removeprefix("tests/contract/test_").split(".py::", 1)
            cloud = found["cloud"]
            rows[file][cloud]["differs" if outcome == "xfailed" else outcome] += 1
            if outcome == "xfailed":
                differences[report.wasxfail.removeprefix("reason: ")].append(test)
            elif outcome == "skipped" and isinstance(report.longrepr, tuple):
                differences[report.longrepr[2].removeprefix("Skipped: ")].append(test)
    if not rows:
        return
    terminalreporter.section("contract: the same tests on our cloud and on Google's emulators")
    for file, clouds in sorted(rows.items()):
        cells = (
            ", ".join(f"{count} {outcome}" for outcome, count in clouds[cloud].items()) or "-" for cloud in _CLOUDS
        )
        terminalreporter.write_line(f"{file:<28}" + "".join(f"{cell:<36}" for cell in cells))
    for reason, tests in sorted(differences.items()):
        names = sorted({_PARAMETER.sub("", test) for test in tests})
        terminalreporter.write_line(f"  {reason}: {', '.join(names)}")
