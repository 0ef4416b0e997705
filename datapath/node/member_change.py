"""One wanted change of the members, over its proposals: look, propose, settle, or answer. Pure.

`datapath.node.members` (and the simulator's operators) tell it which view is known, what was seen
of the nodes, and how each proposal ended, and do what it says. Who may be removed or come in is
judged by `datapath.node.membership`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from datapath.errors import NotPrimaryError, OperationError, OperationUnknownError, RejectedError
from datapath.node.membership import MembershipRefusal, describe, may_join, may_take_addresses
from election.agreement import Committed, Outcome, Refused, Unknown
from election.identity import Addresses
from election.release import Release, may_raise, unsupported
from election.view import AddMember, Confirm, Member, RemoveMember, View, ViewChange

ChangeStep = Literal["wait", "look", "propose", "answer"]


class MemberChange:
    """`make` returns what to propose at a view; None: the view is as wanted.

    It raises RejectedError if that cannot be wanted of the view. `removes` names a node that is
    taken out: then who lives is looked at before each proposal, under the view that it is made at.
    `force` goes on over what a refusal allows to be forced. `deadline_ms` is on the clock that
    `next` is given.
    """

    def __init__(
        self,
        make: Callable[[View], ViewChange | None],
        deadline_ms: float,
        *,
        removes: str = "",
        force: bool = False,
    ) -> None:
        self._make = make
        self._removes = removes
        self._force = force
        self._looked_at = 0  # the version of the view that was judged, and not proposed at since
        self._was_proposed = False
        self._unknown_at = 0  # the version of the newest proposal that had no outcome; 0: none
        self._answer: View | OperationError | None = None
        self.deadline_ms = deadline_ms
        self.forced = False  # whether the newest judgement would have refused it
        self.view: View | None = None
        self.change: ViewChange | None = None

    def next(self, now_ms: float, view: View | None, *, stopping: bool = False) -> ChangeStep:
        """Say what to do now that `view` is the newest known.

        "look": see who lives, and give `looked` why it may not be done. "propose": propose
        `change` at the version of `view`, and give `proposed` the outcome. "wait": ask again when
        something has changed. "answer": see `answer`.
        """
        if self._answer is not None or stopping or now_ms >= self.deadline_ms:
            return "answer"
        if view is None:
            return "wait"
        try:
            change = self._make(view)
        except RejectedError as refused:
            self._answer = refused if not self._unknown_at else _unknown(refused)
            return "answer"
        if change is None:
            self._answer = view
            return "answer"
        self.view, self.change = view, change
        return "look" if self.must_look(view) else "propose"

    def must_look(self, view: View) -> bool:
        """Whether a removal may not be proposed at `view` as it is: nobody looked under it."""
        return bool(self._removes) and self._looked_at != view.version

    def looked(self, view: View, found: list[MembershipRefusal]) -> None:
        """Take what `membership.refusals` says of `view` and of who was seen alive."""
        binding = [refusal for refusal in found if not (self._force and refusal.forcible)]
        if binding:
            refused = RejectedError(binding[0].code, describe(found, self._removes))
            self._answer = refused if self.did_nothing(view) else _unknown(refused)
        self._looked_at = view.version
        self.forced = bool(found)

    def proposed(self, outcome: Outcome) -> None:
        """Take how the proposal ended. After any but a success it is all judged anew."""
        self._was_proposed = True
        self._looked_at = 0
        match outcome:
            case Unknown() if self.view is not None:
                self._unknown_at = self.view.version
            case Committed(view):
                self._answer = view
            case Refused(View() as view, reason) if self._was_refused_at(view):
                refused = RejectedError("refused", reason)
                self._answer = refused if self.did_nothing(view) else _unknown(refused)

    def _was_refused_at(self, view: View) -> bool:
        """Whether the refusal has another reason than that the view has changed."""
        return self.view is not None and view.version == self.view.version

    def did_nothing(self, view: View) -> bool:
        """Whether no proposal so far has changed anything, or may yet, now that `view` is known.

        One without an outcome may take effect at its own version only. And an id is removed once:
        who is a member at a later version was not removed by it. (An address or a new member may
        have been there in between, and be gone again.)
        """
        is_removal = bool(self._removes)
        return not self._unknown_at or (is_removal and view.version > self._unknown_at)

    def answer(self, nobody: NotPrimaryError) -> View | OperationError:
        """Return the view that is as wanted, or why there is none.

        `nobody` says that nothing could be proposed in time.
        """
        if self._answer is not None:
            return self._answer
        if not self._was_proposed:
            return nobody
        return _unknown(None)


def removal(node: str, deadline_ms: float, *, force: bool = False) -> MemberChange:
    """Want `node` to be out for good. To want that again is harmless."""

    def make(view: View) -> ViewChange | None:
        if view.member(node) is not None:
            return RemoveMember(node)
        if node not in view.removed:
            raise _unknown_node(view, node)
        return None

    return MemberChange(make, deadline_ms, removes=node, force=force)


def addition(
    member: Member, deadline_ms: float, *, anew: bool = True, release: Release | None = None
) -> MemberChange:
    """Want `member` to be one, as it is given; without `anew` only if it is one already.

    `release`: what it runs; None: this very program.
    """

    def make(view: View) -> ViewChange | None:
        known = view.member(member.id)
        if known == member or (known is None and not anew):
            return None
        check_join(view, member, release)
        return AddMember(member)

    return MemberChange(make, deadline_ms)


def change_of_addresses(node: str, addresses: Addresses, deadline_ms: float) -> MemberChange:
    """Want `node` to be reached at other addresses; "" leaves one as it is."""

    def make(view: View) -> ViewChange | None:
        known = view.member(node)
        if known is None:
            raise _unknown_node(view, node)
        moved = msgspec.structs.replace(
            known,
            client=addresses.client or known.client,
            peer=addresses.peer or known.peer,
            raft=addresses.raft or known.raft,
        )
        if moved == known:
            return None
        if (refusal := may_take_addresses(view, moved)) is not None:
            raise RejectedError("refused", refusal.reason)
        return AddMember(moved)

    return MemberChange(make, deadline_ms)


def raised_level(
    level: int, releases: Callable[[], Mapping[str, Release]], deadline_ms: float
) -> MemberChange:
    """Want the cluster to be at `level` (U2); `releases` says what the linked nodes run."""

    def make(view: View) -> ViewChange | None:
        if view.level >= level:
            return None
        if reason := may_raise(view, level, releases()):
            raise RejectedError("upgrade_pending", reason)
        return Confirm(level)

    return MemberChange(make, deadline_ms)


def check_join(view: View, member: Member, release: Release | None = None) -> None:
    """Raise RejectedError if a node may not become a member by asking to."""
    if release is not None and (reason := unsupported(member.id, release, view.level)):
        raise RejectedError("refused", reason)
    if (refusal := may_join(view, member)) is not None:
        raise RejectedError(refusal.code, refusal.reason)


def _unknown_node(view: View, node: str) -> RejectedError:
    known = ", ".join(member.id for member in view.members)
    return RejectedError("unknown_node", f"no node {node!r}; the nodes: {known}")


def _unknown(refused: RejectedError | None) -> OperationUnknownError:
    since = "" if refused is None else f". A repeat was refused: {refused.detail}"
    return OperationUnknownError(
        "timeout",
        "consensus did not answer in time, and may still agree: check `onecopy status` first"
        + since,
    )
