"""What people see: what hosts, datasets and callers wrote cannot move a cursor, colour a line or begin one."""

import ast
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.table import Table

from goblin.cli import main, terminal

ODD = "a\x1b[2J\x07\r\x08\x00\x7f\x9b31m\u202eb\u2028c\U000e0001"
SHOWN = r"a\x1b[2J\x07\r\x08\x00\x7f\x9b31m\u202eb\u2028c\U000e0001"


def test_text_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.echo(f"{ODD}\tä 漢\nnext")
    assert capsys.readouterr().out == f"{SHOWN}\tä 漢\nnext\n"


def test_json_has_none_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.echo_json(json.dumps({ODD: [ODD, "ä"]}, ensure_ascii=False))
    said = capsys.readouterr().out
    assert said.rstrip("\n").isprintable()
    assert json.loads(said) == {ODD: [ODD, "ä"]}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_have_none(is_terminal: bool) -> None:
    paper = io.StringIO()
    table = Table("title")
    table.add_row(ODD)
    terminal.console(file=paper, width=200, force_terminal=is_terminal, markup=False, no_color=True).print(table, ODD)
    said = paper.getvalue()
    assert said.count(SHOWN) == 2
    assert "\x1b[2J" not in said
    assert "\u202e" not in said


def test_an_error_has_none() -> None:
    result = CliRunner().invoke(main.main, ["jobs", "show", f"--{ODD}"])
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    with pytest.raises(SystemExit):
        main.fail(ODD)


def test_every_command_prints_through_the_one_place() -> None:
    """`bootstrap` runs before there is anything else, `image_digests` in a build without the rest."""
    apart = ("terminal.py", "bootstrap.py", "image_digests.py")
    prints = (
        "print", "click.echo", "click.secho", "Console", "sys.stdout.write", "sys.stderr.write",
    )  # fmt: skip
    found = [
        f"{file.name}:{node.lineno} {ast.unparse(node)[:60]}"
        for file in sorted(Path(main.__file__).parent.glob("*.py"))
        if file.name not in apart
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in prints
    ]
    assert found == []
