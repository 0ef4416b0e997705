"""What `onecopy up` shows fits on a terminal of 80 columns, whatever happens."""

from __future__ import annotations

import pytest
from rich.console import Console

from cluster.up.display import Row, render_table

TITLE = "local: primary n1, epoch 1. Logs: data/logs"


def lines(*rows: Row) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        console.print(render_table(TITLE, rows))
    return [line.rstrip() for line in shown.get().splitlines()]


@pytest.mark.parametrize("state", ["primary", "backup", "witness", "learner", "snapshot"])
def test_each_row_is_one_line_and_nothing_is_cut(state: str) -> None:
    row = Row(
        node="n1",
        state=state,
        url="http://127.0.0.1:8101",
        pid=4194304,
        in_sync=True,
        applied_index=1234567,
        lag=0,
    )
    shown = lines(row)
    assert len(shown) == 6
    assert all(len(line) <= 80 for line in shown)
    for part in ("n1", state, "yes", "http://127.0.0.1:8101", "4194304", "1234567"):
        assert part in shown[4]
    assert "…" not in "".join(shown)


def test_a_note_stands_below_and_leaves_the_table_as_it_is() -> None:
    note = "killed by SIGKILL; restarting in 1 s"
    down = Row(node="n1", state="down", url="http://127.0.0.1:8101", note=note)
    up = Row(node="n2", state="primary", url="http://127.0.0.1:8102", pid=4194304, lag=0)
    shown = lines(down, up)
    assert shown[-1] == f"n1: {note}"
    assert "down" in shown[4]
    assert "http://127.0.0.1:8102" in shown[5]
    assert all(len(line) <= 80 for line in lines(noted(down), up))


def noted(row: Row) -> Row:
    """The row with a long note, and one that would act on a terminal."""
    return Row(node=row.node, state=row.state, url=row.url, note="refused: \x1b[2J " + "x " * 90)
