"""`python -m tests.transcripts` writes all transcripts again: read the difference."""

from __future__ import annotations

from pathlib import Path

from tests.transcripts.schedules import SCHEDULES, transcript

if __name__ == "__main__":
    for schedule in SCHEDULES:
        path = Path(__file__).with_name(f"{schedule.__name__}.txt")
        path.write_text(transcript(schedule))
        print(path)
