"""Mutants of who may have a link (rules I1 to I5 of `election.identity`), and of where to dial."""

from __future__ import annotations

import functools
from unittest.mock import patch

import msgspec

from election import identity, registry
from election.identity import Claim, Known, Verdict
from election.registry import AddressRotation, KnownMember, PeerRegistry
from election.view import View
from tests.sim.mutant import Mutant, Patch

_judge = identity.judge
_known_members = registry.known_members
_learn = PeerRegistry.learn


def _guard(name: str, answer: object) -> list[Patch]:
    return [patch.object(identity, name, lambda *_: answer)]


def _nobody_is_judged() -> list[Patch]:
    return [patch.object(registry, "judge", lambda *_, **__: Verdict())]


def _who_is_out_has_links() -> list[Patch]:
    def judge(me: str, own: Claim, peer: str, claim: Claim, known: Known, *rest: object, **more):  # type: ignore[no-untyped-def] # noqa: ANN003, ANN202
        return _judge(me, own, peer, claim, msgspec.structs.replace(known, is_member=None), *rest, **more)  # type: ignore[arg-type] # noqa: E501 # fmt: skip

    return [patch.object(registry, "judge", judge)]


def _old_addresses_are_believed() -> list[Patch]:
    """What was known of a member first stays."""

    def learn(self: PeerRegistry, view: View) -> None:
        before = dict(self._members or {})
        _learn(self, view)
        found: dict[str, KnownMember] = dict(_known_members(view))
        self._members = {name: before.get(name, known) for name, known in found.items()}

    return [patch.object(PeerRegistry, "learn", learn)]


def _the_next_is_never_tried() -> list[Patch]:
    def pick(_self: AddressRotation, found: list[str], *, failed: bool) -> str | None:
        del failed
        return found[0] if found else None

    return [patch.object(AddressRotation, "pick", pick)]


def _mutant(rule: str, broken: str, patches: object, seed: int = 0) -> Mutant:
    return Mutant(rule, broken, patches, seed=seed, moves=True)  # type: ignore[arg-type]


def _of(rule: str, broken: str, name: str, answer: object) -> Mutant:
    return _mutant(rule, broken, functools.partial(_guard, name, answer))


IDENTITY_MUTANTS = (
    _mutant("I1", "nobody at an address is judged", _nobody_is_judged),
    _of("I1", "a node of another cluster has links", "other_cluster", False),
    _of("I1", "an empty directory has links", "admitted", True),
    _of("I2", "another directory under a known id has links", "other_data", False),
    _mutant("I3", "a node that was removed has links", _who_is_out_has_links),
    _of("I4", "a copy has links from any address", "at_known_address", True),
    _of("I5", "two processes hold one identity", "second_holder", None),
    _mutant("I4", "an old address is believed", _old_addresses_are_believed),
)
