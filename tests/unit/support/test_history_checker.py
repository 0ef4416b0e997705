"""The history checker accepts what one copy can explain, and nothing else.

Each history is made by hand. Times are small numbers; where operations do not overlap, their order
in the test is their order in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.history import History, Operation, Verdict, check_many, main


class Script:
    """Writes a history: each call is an operation after the one before, unless told a time."""

    def __init__(self) -> None:
        self.history = History("by hand")
        self._now = itertools.count(10, 10)
        self._clients = itertools.count(1)

    def _times(self, times: tuple[int, int] | None) -> tuple[int, int]:
        return times or (next(self._now), next(self._now))

    def put(
        self, key: str, value: str, revision: int, *, created: bool = True, **options: Any
    ) -> None:
        start, end = self._times(options.pop("times", None))
        operation = self.open_put(key, value, start, **options)
        operation.done(end, revision=revision, created=created)

    def open_put(self, key: str, value: str, start: int | None = None, **options: Any) -> Operation:
        """A put without an end."""
        start = next(self._now) if start is None else start
        return self.history.put(next(self._clients), key, value, start, **options)

    def unknown_put(self, key: str, value: str, **options: Any) -> None:
        self.open_put(key, value, **options).unknown(next(self._now))

    def delete(self, key: str, revision: int, *, deleted: bool = True) -> None:
        operation = self.history.delete(next(self._clients), key, next(self._now))
        operation.removed(next(self._now), deleted=deleted, revision=revision)

    def get(
        self,
        key: str,
        value: str | None,
        revision: int = 0,
        *,
        stale: bool = False,
        times: tuple[int, int] | None = None,
    ) -> None:
        start, end = self._times(times)
        operation = self.history.get(next(self._clients), key, start, stale=stale)
        operation.got(end, value, revision)

    def range(
        self,
        prefix: str,
        items: Iterable[tuple[str, str, int]],
        revision: int,
        *,
        stale: bool = False,
        times: tuple[int, int] | None = None,
    ) -> None:
        start, end = self._times(times)
        operation = self.history.range(next(self._clients), start, prefix=prefix, stale=stale)
        operation.listed(end, items, revision=revision)

    def failed_put(self, key: str, value: str, seen: int | None, **options: Any) -> None:
        operation = self.open_put(key, value, **options)
        operation.condition_failed(next(self._now), seen_revision=seen)


@pytest.fixture
def script() -> Script:
    return Script()


def check(script: Script, directory: Path) -> Verdict:
    return script.history.check(directory, timeout_s=20)


def accept(script: Script, directory: Path) -> None:
    verdict = check(script, directory)
    verdict.require()
    assert not verdict.picture
    assert not list(directory.iterdir()), "nothing is left of a good history"


def refuse(script: Script, directory: Path, *words: str) -> None:
    verdict = check(script, directory)
    assert verdict.status == "violation", verdict
    text = str(verdict)
    assert all(word in text for word in words), text


# -- what is allowed


def test_an_empty_history_is_linearizable(script: Script, tmp_path: Path) -> None:
    accept(script, tmp_path)


def test_writes_and_reads_in_order(script: Script, tmp_path: Path) -> None:
    script.get("k", None)
    script.put("k", "v1", 5)
    script.get("k", "v1", 5)
    script.put("k", "v2", 6, created=False)
    script.get("k", "v2", 6)
    script.delete("k", 9)
    script.get("k", None)
    script.delete("k", 9, deleted=False)
    script.put("k", "v3", 12)
    accept(script, tmp_path)


def test_conditions_that_hold_and_that_fail(script: Script, tmp_path: Path) -> None:
    script.failed_put("k", "v0", 0, if_any=True)
    script.failed_put("k", "v0", 0, if_revision=3)
    script.put("k", "v1", 5, if_absent=True)
    script.failed_put("k", "v2", 5, if_absent=True)
    script.failed_put("k", "v3", 5, if_revision=4)
    script.failed_put("k", "v3", None, if_revision=4)
    script.put("k", "v4", 8, created=False, if_revision=5)
    script.put("k", "v5", 9, created=False, if_any=True)
    script.get("k", "v5", 9)
    accept(script, tmp_path)


def test_concurrent_operations_take_effect_in_any_order(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 8, created=False, times=(100, 200))
    script.put("k", "v2", 7, times=(100, 200))
    script.get("k", "v2", 7, times=(120, 130))
    script.get("k", "v1", 8, times=(140, 150))
    accept(script, tmp_path)


def test_equal_times_are_concurrent(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5, times=(10, 20))
    script.get("k", None, times=(20, 30))
    accept(script, tmp_path)


def test_a_range_shows_one_moment(script: Script, tmp_path: Path) -> None:
    script.range("a/", [], 3)
    script.put("a/x", "v1", 5)
    script.put("b/x", "v2", 6)
    script.put("a/y", "v3", 7, times=(500, 600))
    script.range("a/", [("a/x", "v1", 5)], 6, times=(500, 600))
    script.range("a/", [("a/x", "v1", 5), ("a/y", "v3", 7)], 7, times=(510, 600))
    accept(script, tmp_path)


# -- outcomes that stay unknown


def test_an_unknown_write_may_vanish(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.unknown_put("k", "v2")
    script.get("k", "v1", 5)
    script.put("k", "v3", 6, created=False)
    script.get("k", "v3", 6)
    accept(script, tmp_path)


def test_an_unknown_write_may_show_late(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.unknown_put("k", "v2")
    script.get("k", "v1", 5)
    script.put("k", "v3", 6, created=False)
    script.get("k", "v2", 7)
    script.get("k", "v2", 7)
    accept(script, tmp_path)


def test_an_operation_without_an_end_is_unknown(script: Script, tmp_path: Path) -> None:
    script.open_put("k", "v1")
    script.get("k", None)
    script.get("k", "v1", 5)
    accept(script, tmp_path)


def test_an_unknown_write_that_nobody_saw_explains_what_came_of_others(
    script: Script, tmp_path: Path
) -> None:
    script.unknown_put("k", "v1")
    script.put("k", "v2", 6, created=False)
    script.failed_put("j", "w1", 0, if_any=True)
    script.unknown_put("j", "w2")
    script.failed_put("j", "w3", 8, if_absent=True)
    script.put("j", "w4", 9, created=False, if_revision=8)
    accept(script, tmp_path)


def test_an_unknown_delete_may_happen_or_not(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("j", "w1", 6)
    for key in "kj":
        script.history.delete(99, key, 100).unknown(110)
    script.get("k", "v1", 5, times=(120, 130))
    script.get("j", None, times=(120, 130))
    script.get("k", None, times=(140, 150))
    script.put("j", "w2", 9, times=(160, 170))
    accept(script, tmp_path)


def test_a_range_may_need_unknown_writes_of_several_keys(script: Script, tmp_path: Path) -> None:
    script.put("a/x", "v1", 5)
    script.put("a/y", "v2", 6)
    for key in ("a/y", "a/x"):
        script.history.delete(99, key, 100).unknown(110)
    script.range("a/", [], 9, times=(120, 130))
    accept(script, tmp_path)


def test_an_unknown_write_does_not_come_back(script: Script, tmp_path: Path) -> None:
    script.unknown_put("k", "v1")
    script.get("k", "v1", 5)
    script.put("k", "v2", 6, created=False)
    script.get("k", "v1", 7)
    refuse(script, tmp_path, "get k -> v1 at 7")


def test_an_unknown_write_does_not_vanish_once_it_was_seen(script: Script, tmp_path: Path) -> None:
    script.unknown_put("k", "v1")
    script.get("k", "v1", 5)
    script.get("k", None)
    refuse(script, tmp_path, "get k -> absent")


def test_an_unknown_write_is_not_read_before_its_call(script: Script, tmp_path: Path) -> None:
    script.get("k", "v1", 5)
    script.unknown_put("k", "v1")
    refuse(script, tmp_path, "its put began later")


def test_an_unknown_conditional_write_obeys_its_condition(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.unknown_put("k", "v2", if_absent=True)
    script.get("k", "v2", 6)
    refuse(script, tmp_path)


def test_an_unknown_write_happens_at_a_revision_of_its_own(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=False)
    script.unknown_put("k", "v3")
    script.get("k", "v3", 4)
    refuse(script, tmp_path)


# -- lies


def test_a_stale_read_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=False)
    script.get("k", "v1", 5)
    refuse(script, tmp_path, "left over first", "get k -> v1 at 5")


def test_an_old_value_after_a_new_one_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=False, times=(100, 500))
    script.get("k", "v2", 6, times=(110, 120))
    script.get("k", "v1", 5, times=(130, 140))
    refuse(script, tmp_path)


def test_a_lost_write_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.get("k", None)
    refuse(script, tmp_path, "get k -> absent")


def test_a_lost_write_is_caught_by_the_next_write(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=True)
    refuse(script, tmp_path)


def test_a_write_that_is_applied_twice_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5, times=(10, 60))
    script.put("k", "v2", 6, created=False, times=(20, 30))
    script.get("k", "v1", 7, times=(70, 80))
    refuse(script, tmp_path, "it was written at 5")


def test_a_delete_that_is_applied_twice_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.delete("k", 6)
    script.put("k", "v2", 7)
    script.get("k", None)
    refuse(script, tmp_path)


def test_a_revision_that_goes_back_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 4, created=False)
    refuse(script, tmp_path, "revisions go back in time")


def test_a_revision_that_goes_back_from_key_to_key_is_caught(
    script: Script, tmp_path: Path
) -> None:
    script.put("k", "v1", 5)
    script.put("j", "v2", 4)
    refuse(script, tmp_path, "revisions go back in time", "put j = v2")


def test_one_revision_for_two_writes_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5, times=(10, 20))
    script.put("j", "v2", 5, times=(10, 20))
    refuse(script, tmp_path, "two writes have revision 5")


def test_a_read_with_another_revision_than_its_write_is_caught(
    script: Script, tmp_path: Path
) -> None:
    script.put("k", "v1", 5)
    script.get("k", "v1", 6)
    refuse(script, tmp_path, "it was written at 5")


@pytest.mark.parametrize(
    ("held", "condition"),
    [(True, {"if_absent": True}), (True, {"if_revision": 4}), (False, {"if_any": True})],
    ids=["if absent", "if revision", "if any"],
)
def test_a_condition_that_should_have_failed_is_caught(
    script: Script, tmp_path: Path, held: bool, condition: dict[str, Any]
) -> None:
    if held:
        script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=not held, **condition)
    refuse(script, tmp_path)


@pytest.mark.parametrize(
    ("held", "condition", "seen"),
    [
        (False, {"if_absent": True}, None),
        (True, {"if_any": True}, None),
        (True, {"if_revision": 5}, None),
        (True, {"if_revision": 4}, 0),
        (True, {"if_revision": 4}, 3),
        (False, {"if_revision": 4}, 5),
    ],
    ids=["absent", "any", "revision", "says absent", "says another", "says there"],
)
def test_a_condition_that_should_have_held_is_caught(
    script: Script, tmp_path: Path, held: bool, condition: dict[str, Any], seen: int | None
) -> None:
    if held:
        script.put("k", "v1", 5)
    script.failed_put("k", "v2", seen, **condition)
    refuse(script, tmp_path)


def test_two_compare_and_sets_of_one_revision_are_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=False, if_revision=5, times=(100, 200))
    script.put("k", "v3", 7, created=False, if_revision=5, times=(100, 200))
    refuse(script, tmp_path)


def test_a_range_that_misses_an_item_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("a/x", "v1", 5)
    script.put("a/y", "v2", 6)
    script.range("a/", [("a/y", "v2", 6)], 6)
    refuse(script, tmp_path, "range prefix=")


def test_a_range_that_mixes_two_moments_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("a/x", "v1", 5)
    script.put("a/y", "w1", 6)
    script.put("a/x", "v2", 7, created=False, times=(100, 200))
    script.put("a/y", "w2", 8, created=False, times=(100, 200))
    script.range("a/", [("a/x", "v1", 5), ("a/y", "w2", 8)], 8, times=(100, 200))
    refuse(script, tmp_path)


def test_a_range_at_a_revision_that_it_does_not_show_is_caught(
    script: Script, tmp_path: Path
) -> None:
    script.put("a/x", "v1", 5, times=(100, 200))
    script.range("a/", [], 7, times=(100, 200))
    refuse(script, tmp_path)


def test_a_range_at_an_old_revision_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("b/x", "v1", 5)
    script.range("a/", [], 4)
    script.range("a/", [], 3)
    refuse(script, tmp_path, "revisions go back in time")


@pytest.mark.parametrize(
    "items", [[("a/x", "v", 5), ("a/x", "v", 5)], [("b/x", "w", 6)]], ids=["twice", "outside"]
)
def test_a_range_with_a_wrong_key_is_caught(
    script: Script, tmp_path: Path, items: list[tuple[str, str, int]]
) -> None:
    script.put("a/x", "v", 5)
    script.put("b/x", "w", 6)
    script.range("a/", items, 6)
    refuse(script, tmp_path, "out of place")


def test_a_write_called_not_applied_that_shows_is_caught(script: Script, tmp_path: Path) -> None:
    script.open_put("k", "v1", 0).not_applied(5)
    script.get("k", "v1", 6)
    refuse(script, tmp_path, "its put was answered with not_applied")


def test_a_delete_called_not_applied_that_shows_is_caught(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.history.delete(9, "k", 100).not_applied(110)
    script.get("k", None, times=(120, 130))
    refuse(script, tmp_path, "get k -> absent")


def test_a_value_that_nobody_wrote_is_caught(script: Script, tmp_path: Path) -> None:
    script.get("k", "v1", 6)
    refuse(script, tmp_path, "nobody wrote it")


# -- stale reads


def test_stale_reads_may_be_old_and_go_back(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.put("k", "v2", 6, created=False)
    script.unknown_put("k", "v3")
    script.get("k", "v3", 9, stale=True)
    script.get("k", "v1", 5, stale=True)
    script.get("k", None, stale=True)
    script.range("", [("k", "v2", 6)], 7, stale=True)
    accept(script, tmp_path)


@pytest.mark.parametrize("revision", [4, 6])
def test_a_stale_read_shows_no_other_revision(
    script: Script, tmp_path: Path, revision: int
) -> None:
    script.put("k", "v1", 5)
    script.get("k", "v1", revision, stale=True)
    refuse(script, tmp_path, "a stale read gave", "it was written at 5")


def test_a_stale_read_shows_nothing_that_was_refused(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    script.failed_put("k", "v2", 5, if_absent=True)
    script.range("", [("k", "v2", 6)], 7, stale=True)
    refuse(script, tmp_path, "a stale read gave", "answered with failed_condition")


# -- the checker as a program


def test_a_violation_leaves_a_picture_and_a_file_that_fails_again(
    script: Script,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script.put("k", "v1", 5)
    script.get("k", None)
    verdict = check(script, tmp_path)
    assert b"<html" in Path(verdict.picture).read_bytes()
    with pytest.raises(
        AssertionError, match=r"python -m tests\.support\.history .*by-hand\.ndjson"
    ):
        verdict.require()
    monkeypatch.setattr("sys.argv", ["history", verdict.file])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    assert "violation" in capsys.readouterr().out


def test_time_that_is_over_is_no_verdict(script: Script, tmp_path: Path) -> None:
    script.put("k", "v1", 5)
    verdict = script.history.check(tmp_path, timeout_s=0)
    assert verdict.status == "undecided"
    assert Path(verdict.file).exists()
    with pytest.raises(AssertionError, match="not decided"):
        verdict.require()


def test_many_histories_have_a_verdict_each(tmp_path: Path) -> None:
    histories = []
    for number in range(50):
        script = Script()
        script.history.name = f"seed {number}"
        script.put("k", "v1", 5)
        script.get("k", "v1" if number != 17 else None, 5 if number != 17 else 0)
        histories.append(script.history)
    verdicts = check_many(histories, tmp_path)
    assert [verdict.history for verdict in verdicts] == [f"seed {n}" for n in range(50)]
    assert [n for n, verdict in enumerate(verdicts) if not verdict.ok] == [17]
    assert {path.name for path in tmp_path.iterdir()} == {"seed-17.ndjson", "seed-17.html"}


@pytest.mark.parametrize("end", ["done", "removed", "got", "unknown"])
def test_an_operation_ends_once_and_as_its_kind_does(script: Script, end: str) -> None:
    put = script.open_put("k", "v1", 10)
    if end in {"removed", "got"}:
        with pytest.raises(ValueError, match="does not end so"):
            put.got(20, "v1", 5) if end == "got" else put.removed(20, deleted=True)
        return
    with pytest.raises(ValueError, match="before its call"):
        put.unknown(9)
    put.unknown(11)
    with pytest.raises(ValueError, match="ended as unknown before"):
        put.done(20, revision=5, created=True) if end == "done" else put.unknown(20)
