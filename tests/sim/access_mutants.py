"""Mutants of who may do what (A1): callers whose right comes and goes have to notice."""

from __future__ import annotations

from unittest.mock import patch

from cluster.api import audit
from cluster.services import rights
from cluster.services.access_guard import TokenGuard, is_certificate
from datapath.execution.executor import Executor
from datapath.execution.tail import PendingAnswer
from datapath.operations import Operation, Principal, Query
from tests.sim import callers
from tests.sim.mutant import Mutant, Patch

ACCESS = "tests/unit/cluster/services/test_access.py::"
AUDIT = "tests/integration/cluster/api/test_audit.py::"
PIPELINE = "tests/unit/datapath/execution/test_pipeline_guards.py::"
RIGHTS = "tests/unit/cluster/services/test_rights.py::"


def _operations_are_not_judged() -> list[Patch]:
    return [patch.object(Executor, "_judge", lambda _executor, _operation: "")]


def _queries_are_not_judged() -> list[Patch]:
    judge = TokenGuard.judge

    def writes_only(guard: TokenGuard, asked: Operation | Query, read: object) -> object:
        return "" if isinstance(asked, Query) else judge(guard, asked, read)  # type: ignore[arg-type]

    return [patch.object(TokenGuard, "judge", writes_only)]


def _judged_by_what_has_committed() -> list[Patch]:
    """What the executor has executed before, in the same batch say, does not count."""
    return [
        patch.object(
            Executor,
            "_read_newest",
            lambda executor, keyspace, key: executor._state.get(keyspace, key),
        )
    ]


def _a_token_is_proved_by_its_id() -> list[Patch]:
    return [patch("cluster.services.access_guard.is_proved", lambda _caller, _token: True)]


def _a_role_once_found_is_kept() -> list[Patch]:
    return [patch("cluster.services.access_guard.is_unchanged", lambda _known, _read: True)]


def _a_forwarder_recalls_for_anybody() -> list[Patch]:
    return [patch("datapath.execution.executor.is_judged", lambda _guard, _operation: False)]


def _a_repeat_is_not_judged() -> list[Patch]:
    repeat_of = Executor.repeat_of

    def anybody(executor: Executor, operation: Operation, *args: int, **options: bool) -> object:
        with patch.object(Executor, "_judge", lambda _executor, _operation: ""):
            return repeat_of(executor, operation, *args, **options)

    return [patch.object(Executor, "repeat_of", anybody)]


def _a_first_answer_needs_no_lease() -> list[Patch]:
    def is_no_repeat(answer: PendingAnswer) -> bool:
        return answer.executed.index == 0 and not answer.executed.repeated

    return [patch.object(PendingAnswer, "wrote_nothing", is_no_repeat)]


def _whoever_leads_no_open_epoch_judges() -> list[Patch]:
    return [patch("datapath.execution.pipeline.knows_rights", lambda _primary: True)]


def _rights_of_any_age() -> list[Patch]:
    return [patch.object(callers, "with_fresh_rights", lambda _guard, query: query)]


def _any_right_is_enough() -> list[Patch]:
    return [patch.object(rights, "covers", lambda _prefix, _start, _end: True)]


def _one_key_may_be_read_by_all() -> list[Patch]:
    return [patch("cluster.services.access_guard.may_read_key", lambda _role, _args: True)]


def _unlisted_calls_are_open() -> list[Patch]:
    needs_of = rights.needs_of

    def open_(service: str, method: str, *args: object) -> list[rights.Need]:
        found = needs_of(service, method, *args)  # type: ignore[arg-type]
        return [] if found == [rights.Need("admin")] else found

    return [patch("cluster.services.access_guard.needs_of", open_)]


def _whose_a_lease_is_does_not_matter() -> list[Patch]:
    return [patch("cluster.services.lease_state.may_use", lambda _role, _owner: True)]


def _the_last_administrator_may_go() -> list[Patch]:
    return [patch("cluster.services.access.leaves_an_admin", lambda _holders, _roles: True)]


def _a_certificate_is_an_administrator_for_good() -> list[Patch]:
    return [patch("cluster.services.access.is_certificate", lambda _token: False)]


def _any_certificate_is_known() -> list[Patch]:
    role_of = TokenGuard._role_of

    def known(guard: TokenGuard, caller: Principal, read: object) -> object:
        if is_certificate(caller.token):
            caller = callers.BY_CERTIFICATE
        return role_of(guard, caller, read)  # type: ignore[arg-type]

    return [patch.object(TokenGuard, "_role_of", known)]


def _who_is_anonymous_is_not_judged() -> list[Patch]:
    judge = TokenGuard.judge

    def known_only(guard: TokenGuard, asked: Operation | Query, read: object) -> object:
        caller = asked.caller or Principal()
        return judge(guard, asked, read) if caller.token else ""  # type: ignore[arg-type]

    return [patch.object(TokenGuard, "judge", known_only)]


def _tokens_are_written_down() -> list[Patch]:
    return [patch.object(audit, "without_tokens", lambda text: text)]


def _anybody_is_the_files_administrator() -> list[Patch]:
    return [
        patch("cluster.services.access_guard.is_first_admin", lambda _first, _caller, _read: True)
    ]


def _the_files_administrator_is_never_revoked() -> list[Patch]:
    def by_the_file_alone(first: Principal, caller: Principal, _read: object) -> bool:
        return caller == first

    return [patch("cluster.services.access_guard.is_first_admin", by_the_file_alone)]


ACCESS_MUTANTS = (
    Mutant("A1", "operations are not judged", _operations_are_not_judged, callers=True),
    Mutant("A1", "queries are not judged", _queries_are_not_judged, callers=True),
    Mutant("A1", "judged by what has committed alone", _judged_by_what_has_committed,
           unit=ACCESS + "test_a_revoked_right_counts_before_it_has_committed"),
    Mutant("A1", "a token is proved by its id", _a_token_is_proved_by_its_id, callers=True),
    Mutant("A1", "a role once found is kept", _a_role_once_found_is_kept, callers=True),
    Mutant("A1", "a forwarder recalls for anybody", _a_forwarder_recalls_for_anybody, callers=True),
    Mutant("A1", "a repeat is not judged", _a_repeat_is_not_judged, callers=True),
    Mutant("A1", "a first answer needs no lease", _a_first_answer_needs_no_lease,
           unit=PIPELINE + "test_a_first_answer_that_rests_on_rights_needs_a_lease_that_lasts"),
    Mutant("A1", "whoever leads no open epoch judges", _whoever_leads_no_open_epoch_judges,
           unit=PIPELINE + "test_nobody_is_judged_before_the_epoch_is_open"),
    Mutant("A1", "rights of any age will do", _rights_of_any_age, callers=True),
    Mutant("A1", "any prefix is as good as another", _any_right_is_enough, callers=True),
    Mutant("A1", "one key may be read by all", _one_key_may_be_read_by_all, callers=True),
    Mutant("A1", "any certificate is as good as another", _any_certificate_is_known, callers=True),
    Mutant("A1", "a certificate's name keeps an administrator",
           _a_certificate_is_an_administrator_for_good,
           unit=ACCESS + "test_a_certificate_has_the_role_that_its_name_was_given"),
    Mutant("A1", "who is anonymous is not judged", _who_is_anonymous_is_not_judged, callers=True),
    Mutant("A1", "what is not listed is open", _unlisted_calls_are_open,
           unit=ACCESS + "test_a_role_allows_what_it_names"),
    Mutant("A1", "whose a lease is does not matter", _whose_a_lease_is_does_not_matter,
           unit=ACCESS + "test_a_lease_is_for_the_role_that_it_was_granted_to"),
    Mutant("A1", "with nobody to ask anybody is the administrator",
           _anybody_is_the_files_administrator,
           unit=ACCESS + "test_with_nobody_to_ask_the_file_of_a_node_names_one_administrator"),
    Mutant("A1", "a file's administrator is never revoked",
           _the_files_administrator_is_never_revoked,
           unit=ACCESS
           + "test_the_administrator_of_a_file_is_none_once_the_token_is_known_to_be_revoked"),
    Mutant("A1", "the last administrator may go", _the_last_administrator_may_go,
           unit=ACCESS + "test_what_would_lock_every_administrator_out_is_refused"),
    Mutant("A2", "what callers send is written down as it is", _tokens_are_written_down,
           unit=AUDIT + "test_a_token_where_its_id_belongs_is_told_to_nobody"),
)  # fmt: skip
