"""What the README tells a person to type does what it says."""

import pytest

from pages import ROOT, commands_of, fences

FENCES = fences(ROOT / "README.md")
LINES = [line for fence in FENCES for line in fence.lines]


def test_the_readme_has_commands():
    assert len(LINES) >= 7


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition("#")[0].strip())
def test_a_command_of_the_readme(line, desk, monkeypatch):
    desk.run(commands_of(line), monkeypatch)


def test_the_python_of_the_readme(desk):
    (python,) = [fence.code for fence in FENCES if fence.language == "python"]
    written = desk.execute(python)
    assert written.startswith("ROMEO:")
    assert len(written) == len("ROMEO:") + 100 + 1
