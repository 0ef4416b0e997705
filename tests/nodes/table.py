"""Turns a report of the cut networks into the table of docs/testing.md.

    ONECOPY_FAULTS_REPORT=report.jsonl make faults
    python -m tests.nodes.table report.jsonl [--into docs/testing.md]

Of several runs in one report the worst counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.nodes.scenario import SHAPES, Line

BEGIN = "<!-- the table of cut networks, by tests/nodes/table.py -->"
END = "<!-- end of the table -->"


def table(lines: Iterable[Line]) -> str:
    """Return the table as Markdown: a row for each scenario, gaps of writes / reads by shape."""
    rows: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    for line in sorted(lines, key=lambda line: line.number):
        row = rows.setdefault((line.number, line.scenario, line.promise), {})
        write_ms, read_ms = row.get(line.shape, (0.0, 0.0))
        row[line.shape] = (max(write_ms, line.write_gap_ms), max(read_ms, line.read_gap_ms))
    heads = ["scenario", "what must stay available", *SHAPES]
    out = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (_, scenario, promise), gaps in rows.items():
        cells = [
            f"{gaps[shape][0] / 1000:.1f} / {gaps[shape][1] / 1000:.1f}" if shape in gaps else ""
            for shape in SHAPES
        ]
        out.append("| " + " | ".join([scenario, promise, *cells]) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Print the table, or put it where it belongs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--into", type=Path)
    args = parser.parse_args()
    lines = [msgspec.json.decode(line, type=Line) for line in args.report.read_bytes().splitlines()]
    text = table(lines)
    if args.into is None:
        print(text)
        return
    document = args.into.read_text()
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    args.into.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
