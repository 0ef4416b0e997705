"""What holds in every run of consensus, judged whenever a member waits and whenever it sends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from election.pysyncobj_adapter import journal as journal_module
from election.pysyncobj_adapter import progress_mark, wire
from election.pysyncobj_adapter.files import decode_file
from election.pysyncobj_adapter.journal import RaftEntry
from election.pysyncobj_adapter.members import membership_change
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.view_machine import Machine, ViewReply, changed_members
from election.view import View
from tests.sim.clockwork import Clockwork, ViolationError
from tests.sim.consensus.disk import File

if TYPE_CHECKING:
    from tests.sim.consensus.node import Node

Members = frozenset[str]


class DurableLog:
    """What a member's journal holds on its disk, read on as it grows."""

    def __init__(self) -> None:
        self._file: File | None = None
        self._version = -1
        self._scan: journal_module._Scan | None = None
        self._terms: dict[int, int] = {}

    def read(self, file: File | None) -> DurableLog:
        """Look at the file as it is now."""
        if file is self._file and (file is None or file.version == self._version):
            return self
        if file is not self._file or self._scan is None:
            self._file = file
            self._scan = None
            self._terms.clear()
            if file is None:
                return self
            scan = self._scan = journal_module._Scan.__new__(journal_module._Scan)
            scan.path, scan.entries, scan.term, scan.voted_for = Path("journal"), [], 0, None
            scan.end_bytes = journal_module._HEADER.size
        assert file is not None
        self._version = file.version
        scan = self._scan
        scan.data = bytes(file.durable)
        while scan._read_record():
            pass
        return self

    def holds(self, index: int, term: int) -> bool:
        """Whether that entry is on the disk, or covered by the dump before the journal."""
        entries = self._scan.entries if self._scan is not None else []
        if not entries:
            return False
        position = index - entries[0][1]
        if position < 0:
            return True
        return position < len(entries) and entries[position][2] == term

    @property
    def last_index(self) -> int:
        return self._scan.entries[-1][1] if self._scan is not None and self._scan.entries else 0

    @property
    def vote(self) -> tuple[int, str | None]:
        return (0, None) if self._scan is None else (self._scan.term, self._scan.voted_for)


class Facts:
    """What the oracle knows of one member."""

    def __init__(self) -> None:
        self.durable = DurableLog()
        self.looked_at: tuple[object, ...] = ()
        self.checked: dict[int, int] = {}  # terms by index of entries that were looked at
        self.commit_index = 0
        self.applied_index = 0
        self.term = 0  # the highest that it has shown anybody
        self.published_index = 0
        self.published_term = 0


class Oracle:
    """Keeps what is true, and raises a `ViolationError` where a member contradicts it."""

    def __init__(self, clockwork: Clockwork, founders: dict[str, str]) -> None:
        self._clockwork = clockwork
        self.nodes: dict[str, Node] = {}
        self.facts: dict[str, Facts] = {}
        self.committed: list[RaftEntry] = []
        self._committed_in: list[int] = []  # in which term each entry was
        self.terms_committed: set[int] = set()
        self.leaders: dict[int, tuple[str, int]] = {}
        self.highest_term = 0
        self._entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._founders = founders
        self.machine = Machine(founders)
        self._states: list[tuple[View | None, dict[str, str]]] = [(None, founders)]
        self.views: dict[int, View] = {}
        self.answers: dict[bytes, ViewReply] = {}
        self.on_view: Callable[[View | None, View, bytes], None] = lambda *_: None
        """Is told of each committed change of the view: the view before, after, the command."""
        self._split: tuple[int, frozenset[str]] | None = None

    def watch_split(self, term: int, two: frozenset[str]) -> None:
        """Five voters are split, and the leader of this term is one of the two."""
        self._split = (term, two)

    def facts_of(self, node: Node) -> Facts:
        """Return what is known of a node."""
        facts = self.facts.get(node.id)
        if facts is None:
            facts = self.facts[node.id] = Facts()
        return facts

    @property
    def view(self) -> View | None:
        """The true view: the newest one that is committed."""
        return self.machine.view

    @property
    def voters(self) -> dict[str, str]:
        """The voters by the committed changes."""
        return self.machine.raft_members

    # -- when a member waits

    def check(self, node: Node, *, at_rest: bool) -> None:
        """Look at what has changed in a member since it last waited."""
        core = node.core
        assert core is not None
        log = core._journal._entries
        last = log[-1]
        is_leader = core._isLeader()
        # Its fields, and not its properties: this is done at each of its steps.
        commit, applied = core._SyncObj__raftCommitIndex, core._SyncObj__raftLastApplied
        term = core._SyncObj__raftCurrentTerm
        state = (term, is_leader, commit, applied, log[0][1], last[1], last[2])
        facts = self.facts_of(node)
        if state == facts.looked_at:
            return
        if at_rest:
            facts.looked_at = state
        self._check_entries(node, facts, log)
        if is_leader and at_rest:  # it steps down only after it has stored the higher term
            self._check_leader(node, term, log)
        self._check_commits(node, facts, log, commit)
        if at_rest and applied > facts.applied_index:
            self._check_applied(node, facts, applied)

    def _check_leader(self, node: Node, term: int, log: list[RaftEntry]) -> None:
        """One leader a term, and it has all that was committed in earlier terms."""
        found = self.leaders.get(term)
        if found == (node.id, node.life):
            return
        if found is not None:
            raise ViolationError(f"{node.id} leads in term {term}, and so did {found[0]}")
        self.leaders[term] = (node.id, node.life)
        self._clockwork.seen["leader elected"] += 1
        if self._split is not None and term > self._split[0]:
            if node.id not in self._split[1]:
                self._clockwork.seen["split 2|3, the three elected another leader"] += 1
            self._split = None
        node.note(f"leads in term {term}")
        count = len(self.committed)
        while count and self._committed_in[count - 1] >= term:
            count -= 1  # a vote may arrive after the next leader was elected
        if count:
            _, index, entry_term = self.committed[count - 1]
            position = index - log[0][1]
            if position >= len(log) or (position >= 0 and log[position][2] != entry_term):
                raise ViolationError(
                    f"{node.id} leads in term {term} without the committed entry {index}"
                )

    def _check_entries(self, node: Node, facts: Facts, log: list[RaftEntry]) -> None:
        """One index and term: one content, one entry before it. Voters change one by one."""
        checked, new = facts.checked, []
        for position in range(len(log) - 1, -1, -1):
            entry = log[position]
            if checked.get(entry[1]) == entry[2]:
                break
            new.append(position)
        for index in [index for index in checked if index > log[-1][1]]:
            del checked[index]
            self._clockwork.seen["truncation"] += 1
        for position in reversed(new):
            command, index, term = log[position]
            if checked.get(index, term) != term:
                self._clockwork.seen["truncation"] += 1
            checked[index] = term
            before = log[position - 1][2] if position else -1
            known = self._entries.get((index, term))
            if known is None:
                self._entries[index, term] = (command, before)
                self._on_new_entry(node, log, position)
            elif known[0] != command or (-1 not in (known[1], before) and known[1] != before):
                raise ViolationError(f"{node.id} holds another entry {index} of term {term}")
            elif known[1] == -1:
                self._entries[index, term] = (command, before)

    def _on_new_entry(self, node: Node, log: list[RaftEntry], position: int) -> None:
        command, _, term = log[position]
        change = membership_change(command)
        if change is None:
            return
        self._clockwork.seen["voter added" if change.adding else "voter removed"] += 1
        if term not in self.terms_committed:
            raise ViolationError(
                f"{node.id} appended a change of the voters in term {term}, of which no entry is "
                "committed"
            )
        uncommitted = [
            entry[1]
            for entry in log[: position + 1]
            if entry[1] > len(self.committed) and membership_change(entry[0]) is not None
        ]
        if len(uncommitted) > 1:
            raise ViolationError(
                f"{node.id} holds changes of the voters at {uncommitted}, none of them committed"
            )

    def _check_commits(self, node: Node, facts: Facts, log: list[RaftEntry], commit: int) -> None:
        first = log[0][1]
        for index in range(max(facts.commit_index + 1, first), commit + 1):
            entry = log[index - first]
            if index <= len(self.committed):
                if self.committed[index - 1] != entry:
                    raise ViolationError(
                        f"{node.id} has committed another entry {index}: {entry}, not "
                        f"{self.committed[index - 1]}"
                    )
            elif index == len(self.committed) + 1:
                self._on_commit(node, entry, log)
            else:
                raise ViolationError(f"{node.id} has committed {index}, after {index - 1} was not")
        facts.commit_index = max(facts.commit_index, commit)

    def _on_commit(self, node: Node, entry: RaftEntry, log: list[RaftEntry]) -> None:
        command, index, term = entry
        if index > 1 and not self._is_held(index, term, log):
            raise ViolationError(
                f"{node.id} has committed entry {index} of term {term}, which is not on the disks "
                "of a majority"
            )
        self.committed.append(entry)
        assert node.core is not None
        self._committed_in.append(node.core.raftCurrentTerm)
        self.terms_committed.add(term)
        before = self.machine.view
        if command[:1] == b"\x00":
            answer = self.machine.apply(command[1:])
            view = self.machine.view
            if answer is not None:
                self.answers.setdefault(answer.request_id, answer)
            if view is not None and view is not before:
                self.views[view.version] = view
                self._clockwork.seen["view committed"] += 1
        else:
            change = membership_change(command)
            if change is not None:
                self.machine.apply_membership(change)
        view = self.machine.view
        self._states.append((view, self.machine.raft_members))
        if view is not None and view is not before:
            self.on_view(before, view, command[1:])

    def _is_held(self, index: int, term: int, log: list[RaftEntry]) -> bool:
        """Whether a majority of the voters has it, before or after a change under way."""
        before = self.machine.raft_members
        groups = [before]
        for entry in log:
            change = membership_change(entry[0]) if entry[1] > len(self.committed) else None
            if change is not None:
                before = changed_members(before, change)
                groups.append(before)
        for group in groups:
            holders = sum(self.durable(name).holds(index, term) for name in group)
            if 2 * holders > len(group):
                return True
        return False

    def durable(self, name: str) -> DurableLog:
        """Return what is on a node's disk."""
        node = self.nodes[name]
        facts = self.facts_of(node)
        return facts.durable.read(node.disk.durable_file(node.journal))

    def _check_applied(self, node: Node, facts: Facts, applied: int) -> None:
        facts.applied_index = applied
        if applied > len(self.committed):
            raise ViolationError(f"{node.id} has applied {applied}, which is not committed")
        assert node.core is not None
        machine = node.core.machine
        view, members = self._states[applied]
        # Ids only: founders may have started with different addresses, which are hints.
        if machine.view != view or machine.raft_members.keys() != members.keys():
            raise ViolationError(
                f"{node.id} has applied {applied} and arrived at {machine.view} with the voters "
                f"{sorted(machine.raft_members)}, not at {view} with {sorted(members)}"
            )

    # -- what a member tells others

    def on_sent(self, node: Node, target: str, message: object) -> None:
        """A member has sent a message: what it promises must be on its disk."""
        match message:
            case wire.Vote(term=term):
                self._note_vote(node, term, target)
            case wire.RequestVote(term=term):
                self._note_vote(node, term, node.id)
            case wire.FollowerReply(term=term, success=True, next_index=next_index):
                self._note_term(node, term)
                if self.durable(node.id).last_index < next_index - 1:
                    raise ViolationError(
                        f"{node.id} acknowledged entry {next_index - 1}, which is not on its disk"
                    )
            case wire.FollowerReply(term=term):
                self._note_term(node, term)
            case wire.AppendEntries(term=term) | wire.Snapshot(term=term):
                if isinstance(message, wire.Snapshot):
                    self._clockwork.seen["snapshot sent"] += 1
                self._note_term(node, term)
                assert node.core is not None
                self._check_leader(node, term, node.core._journal._entries)
            case _:
                pass

    def _note_vote(self, node: Node, term: int, candidate: str) -> None:
        known = self._votes.setdefault((node.id, term), candidate)
        if known != candidate:
            raise ViolationError(f"{node.id} votes for {candidate} and {known} in term {term}")
        if self.durable(node.id).vote != (term, candidate):
            raise ViolationError(f"{node.id} votes in term {term}, which is not on its disk")
        self._note_term(node, term)

    def _note_term(self, node: Node, term: int) -> None:
        facts = self.facts_of(node)
        if term < facts.term:
            raise ViolationError(f"{node.id} speaks in term {term}, after term {facts.term}")
        if term > facts.term:
            facts.term = term
            self.highest_term = max(self.highest_term, term)
            if self.durable(node.id).vote[0] < term:
                raise ViolationError(f"{node.id} speaks in term {term}, which is not on its disk")

    def on_told(self, node: Node, mark: PeerMark) -> None:
        """A member tells how far it is, to be remembered: others will refuse less (decision 18)."""
        log = self.durable(node.id)
        if log.vote[0] < mark.term or log.last_index < mark.applied_index:
            raise ViolationError(
                f"{node.id} tells term {mark.term} and entry {mark.applied_index}, and its disk "
                f"holds {log.vote[0]} and {log.last_index}"
            )

    def on_published(self, node: Node, view: View) -> None:
        """A member hands a view to the data path."""
        if self.views.get(view.version) != view:
            raise ViolationError(f"{node.id} publishes {view}, not {self.views.get(view.version)}")
        if node.published is not None and view.version <= node.published.version:
            raise ViolationError(f"{node.id} publishes version {view.version} after a later one")
        facts = self.facts_of(node)
        assert node.core is not None
        if not node.disk.is_full:
            facts.published_index = max(facts.published_index, node.core.raftLastApplied)
            mark = node.directory.with_name(node.directory.name + ".mark")
            file = node.disk.durable_file(str(mark))
            noted = 0
            if file is not None:
                content = decode_file(progress_mark.PROGRESS_MARK_MAGIC, bytes(file.durable), mark)
                noted = msgspec.msgpack.decode(content, type=progress_mark._Content).applied_index
            if noted < facts.published_index:
                raise ViolationError(
                    f"{node.id} publishes a view after entry {facts.published_index}, and its "
                    f"progress mark says {noted}"
                )

    # -- lives

    def on_started(self, node: Node) -> None:
        """A member has read its disk."""
        facts, core = self.facts_of(node), node.core
        assert core is not None
        if core.raftCurrentTerm < facts.term:
            raise ViolationError(
                f"{node.id} starts in term {core.raftCurrentTerm}, after term {facts.term}"
            )

    def on_ended(self, node: Node) -> None:
        """A process has ended: the next one begins with what is on the disk."""
        facts = self.facts_of(node)
        facts.looked_at = ()
        facts.checked.clear()
        facts.commit_index = facts.applied_index = 0
