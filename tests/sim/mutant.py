"""What a mutant is: a rule's guard taken out, and who has to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

Patch = contextlib.AbstractContextManager[object]


class Mutant(NamedTuple):
    """A guard taken out, and who notices.

    `scenario` is called; `unit` names a pytest test, run in a process of its own; without either,
    schedules of the simulator are run, from `seed` on; with `clients`, all of them have clients;
    with `holders`, these use leases and locks, too; with `operators`, in all of them operators err;
    with `moves`, in all of them nodes move; with `callers`, rights come and go in all;
    with `consensus`, those of consensus (`tests.sim.consensus`); with `joint`, those of both
    together (`tests.sim.joint`); with `groups`, those of placement (`tests.sim.groups`).
    """

    rule: str
    broken: str
    patches: Callable[[], list[Patch]]
    seed: int = 0
    scenario: Callable[[], None] | None = None
    unit: str = ""
    clients: bool = False
    holders: bool = False
    operators: bool = False
    moves: bool = False
    consensus: bool = False
    joint: bool = False
    callers: bool = False
    groups: bool = False


@contextlib.contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """Take the guard out, for a while."""
    with contextlib.ExitStack() as stack:
        for item in mutant.patches():
            stack.enter_context(item)
        yield
