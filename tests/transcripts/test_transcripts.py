"""The key schedules go as their transcripts say.

A difference is a change of the protocol's behaviour, or of the simulator's random draws. If it is
meant: `python -m tests.transcripts`, and read the difference before it is committed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts.schedules import LINES_MAX, SCHEDULES, Told, transcript

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_a_schedule_goes_as_its_transcript_says(schedule: type[Told]) -> None:
    written = (FOLDER / f"{schedule.__name__}.txt").read_text()
    assert transcript(schedule).splitlines() == written.splitlines()
    assert len(written.splitlines()) <= LINES_MAX


def test_each_transcript_has_its_schedule() -> None:
    names = {schedule.__name__ for schedule in SCHEDULES}
    assert {path.stem for path in FOLDER.glob("*.txt")} == names
