"""Tokens and roles in the replicated state, and the guard, asked in the order of the log (A1)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import (
    TokenGuard,
    draw_token,
    of_certificate,
    principal_of,
    principal_of_certificate,
)
from cluster.services.leases import LEASES_SERVICE
from cluster.services.locks import LOCKS_SERVICE
from cluster.services.rights import Role, encode_role
from datapath.errors import NotPrimaryError, OperationError, OperationNotAppliedError, RejectedError
from datapath.operations import ANONYMOUS, STORE, Operation, Principal
from tests.support.executing import Primary

ROOT = draw_token()
APP = Role(read=("app/",), write=("app/",), lock=("",))


class Bench(Primary):
    """A primary with access control, and one administrator."""

    def __init__(self, anonymous: str = "", *, seeded: bool = True) -> None:
        super().__init__(guard=TokenGuard(anonymous=anonymous))
        self.root = Principal(ROOT.id, ROOT.digest)
        if seeded:
            self.call(ACCESS_SERVICE, "seed", ROOT.id, ROOT.digest)

    def token(self, name: str, role: Role) -> Principal:
        """Return a new caller with a role of that name."""
        self.call(ACCESS_SERVICE, "set_role", name, encode_role(role), caller=self.root)
        new = draw_token()
        self.call(ACCESS_SERVICE, "create_token", new.id, new.digest, name, "", caller=self.root)
        return Principal(new.id, new.digest)

    def code(self, service: str, method: str, *args: Any, **options: Any) -> str:
        """Return the code that it is refused with."""
        before = self.index
        with pytest.raises(OperationError) as found:
            self.call(service, method, *args, **options)
        assert self.index == before, "it has changed something"
        return found.value.code


def test_a_token_is_random_and_its_text_says_its_id() -> None:
    one, other = draw_token(), draw_token()
    assert one.text != other.text
    assert principal_of(one.text) == Principal(one.id, one.digest)
    assert len(one.digest) == 32
    for text in ("", "oct_", one.text + "x", one.text[:-1], one.text.upper(), one.id):
        assert principal_of(text) is None


def test_who_is_not_known_may_do_nothing() -> None:
    bench = Bench()
    forged = Principal(ROOT.id, draw_token().digest)
    for caller in (ANONYMOUS, forged, Principal("0" * 16, ROOT.digest)):
        assert bench.code(STORE, "put", b"k", b"v", caller=caller) == "unauthenticated"
        assert bench.code(ACCESS_SERVICE, "delete_role", "x", caller=caller) == "unauthenticated"


def test_before_the_first_token_is_known_the_client_is_to_try_again() -> None:
    bench = Bench(seeded=False)
    with pytest.raises(NotPrimaryError):
        bench.store("put", b"k", b"v", caller=bench.root)


def test_a_role_allows_what_it_names() -> None:
    bench = Bench()
    app = bench.token("app", APP)
    assert bench.store("put", b"app/k", b"v", caller=app) is True
    assert bench.code(STORE, "put", b"other", b"v", caller=app) == "forbidden"
    assert bench.code(STORE, "delete_range", b"", None, 10, caller=app) == "forbidden"
    assert bench.code(ACCESS_SERVICE, "revoke_token", ROOT.id, caller=app) == "forbidden"


def test_anonymous_callers_have_the_configured_role_or_none() -> None:
    bench = Bench("guest")
    assert bench.code(STORE, "put", b"k", b"v", caller=ANONYMOUS) == "unauthenticated"
    bench.call(
        ACCESS_SERVICE, "set_role", "guest", encode_role(Role(write=("k",))), caller=bench.root
    )
    assert bench.store("put", b"k", b"v", caller=ANONYMOUS) is True
    assert Bench("admin").store("put", b"k", b"v", caller=ANONYMOUS) is True


def test_a_revoked_right_is_gone_for_every_operation_after_it() -> None:
    bench = Bench()
    app = bench.token("app", APP)
    bench.call(
        ACCESS_SERVICE, "set_role", "app", encode_role(Role(read=("app/",))), caller=bench.root
    )
    assert bench.code(STORE, "put", b"app/k", b"v", caller=app) == "forbidden"
    bench.call(ACCESS_SERVICE, "revoke_token", app.token, caller=bench.root)
    assert bench.code(STORE, "put", b"app/k", b"v", caller=app) == "unauthenticated"


def test_a_certificate_has_the_role_that_its_name_was_given() -> None:
    bench = Bench()
    app = bench.token("app", APP)
    alice, bob = map(principal_of_certificate, ("alice", "bob"))

    def give(name: str, role: str) -> None:
        entry = of_certificate(name)
        args = (entry.id, entry.digest, role, "")
        bench.call(ACCESS_SERVICE, "create_token", *args, caller=bench.root)

    give("alice", "app")
    assert bench.store("put", b"app/k", b"v", caller=alice)
    assert bench.code(STORE, "put", b"other/k", b"v", caller=alice) == "forbidden"
    assert bench.code(STORE, "put", b"app/k", b"v", caller=bob) == "unauthenticated"
    for forged in (Principal(alice.token, app.digest), Principal("alice"), Principal(app.token)):
        assert bench.code(STORE, "put", b"app/k", b"v", caller=forged) == "unauthenticated"
    # The name of a role that somebody has: it cannot go. Another one replaces it.
    bench.call(ACCESS_SERVICE, "revoke_token", app.token, caller=bench.root)
    assert bench.code(ACCESS_SERVICE, "delete_role", "app", caller=bench.root) == "role_in_use"
    give("alice", "admin")
    assert bench.store("put", b"other/k", b"v", caller=alice)
    # Nobody knows whether there is such a certificate: an administrator has a token.
    last = bench.code(ACCESS_SERVICE, "revoke_token", bench.root.token, caller=bench.root)
    assert last == "last_admin"
    bench.call(ACCESS_SERVICE, "revoke_token", alice.token, caller=bench.root)
    assert bench.code(STORE, "put", b"app/k", b"v", caller=alice) == "unauthenticated"


def test_a_certificate_without_a_role_is_as_good_as_none() -> None:
    bench = Bench(anonymous="guest")
    bench.token("guest", Role(write=("app/",)))
    for caller in (principal_of_certificate("alice"), principal_of_certificate(""), ANONYMOUS):
        bench.store("put", b"app/k", b"v", caller=caller)
    assert principal_of_certificate("") == ANONYMOUS


def test_no_header_names_a_certificate() -> None:
    secret = draw_token().text.rpartition("_")[2]
    for text in (f"oct_cn=alice_{secret}", "cn=alice", "oct_cn=alice"):
        assert principal_of(text) is None


def test_a_revoked_right_counts_before_it_has_committed() -> None:
    bench = Bench()
    app = bench.token("app", APP)
    revoke = Operation("revoke_token", (app.token,), service=ACCESS_SERVICE, caller=bench.root)
    executed, entry = bench.executor.execute(revoke, bench.index + 1)
    assert executed.error is None
    assert entry is not None
    bench.executor.take(entry)
    put = Operation("put", (b"app/k", b"v"), caller=app)
    executed, entry = bench.executor.execute(put, bench.index + 2)
    assert executed.error is not None
    assert entry is None


def test_a_repeat_is_no_way_around_a_right_that_is_gone() -> None:
    bench = Bench()
    app = bench.token("app", APP)
    bench.store("put", b"app/k", b"v", idempotency_key="K", caller=app)
    put = Operation("put", (b"app/k", b"v"), "K", caller=app)
    # Outside of the log's order nobody knows whether the right is still there.
    assert bench.executor.recall(put) is None
    assert bench.executor.recall(msgspec.structs.replace(put, caller=None)) is not None
    stranger = msgspec.structs.replace(put, caller=ANONYMOUS)
    found = bench.executor.repeat_of(stranger, bench.index + 1)
    assert found is not None
    assert isinstance(found.error, OperationNotAppliedError)
    bench.call(ACCESS_SERVICE, "revoke_token", app.token, caller=bench.root)
    found = bench.executor.repeat_of(put, bench.index + 1)
    assert found is not None
    assert found.error is not None
    assert found.error.code == "unauthenticated"


def test_a_refusal_for_the_caller_is_no_answer_of_the_operation() -> None:
    # After an attempt that may have been carried out it proves nothing (`router.proves`).
    bench = Bench()
    with pytest.raises(OperationNotAppliedError) as found:
        bench.store("put", b"k", b"v", caller=ANONYMOUS)
    assert not isinstance(found.value, RejectedError)


def test_a_lease_is_for_the_role_that_it_was_granted_to() -> None:
    bench = Bench()
    one, other = bench.token("one", APP), bench.token("other", APP)
    lease = bench.call(LEASES_SERVICE, "grant", 10_000, caller=one)
    for method, args in (
        ("keep_alive", ((lease,),)), ("look_up", (lease,)), ("revoke", (lease,)),
    ):  # fmt: skip
        assert bench.code(LEASES_SERVICE, method, *args, caller=other) == "forbidden"
    put = (b"app/k", b"v", None, False, lease, 0)
    assert bench.code(STORE, "put", *put, caller=other) == "forbidden"
    assert bench.store("put", *put, caller=one) is True
    assert bench.call(LEASES_SERVICE, "revoke", lease, caller=bench.root) == 1


def test_another_roles_lease_tells_no_token_of_its_lock() -> None:
    bench = Bench()
    one, other = bench.token("one", APP), bench.token("other", APP)
    held = bench.call(LOCKS_SERVICE, "acquire", b"jobs", 0, 10_000, b"", False, caller=one)
    args = (b"jobs", held.lease, 0, b"", True)
    assert bench.code(LOCKS_SERVICE, "acquire", *args, caller=other) == "forbidden"
    assert bench.code(LOCKS_SERVICE, "withdraw", b"jobs", held.lease, caller=other) == "forbidden"
    assert bench.call(LOCKS_SERVICE, "acquire", *args, caller=one).token == held.token


def test_what_would_lock_every_administrator_out_is_refused() -> None:
    bench = Bench()
    assert bench.code(ACCESS_SERVICE, "revoke_token", ROOT.id, caller=bench.root) == "last_admin"
    ops = bench.token("ops", Role(admin=True))
    bench.call(ACCESS_SERVICE, "revoke_token", ROOT.id, caller=ops)
    weaker = encode_role(Role(read=("",)))
    assert bench.code(ACCESS_SERVICE, "set_role", "ops", weaker, caller=ops) == "last_admin"
    assert bench.code(ACCESS_SERVICE, "delete_role", "ops", caller=ops) == "role_in_use"
    assert bench.code(ACCESS_SERVICE, "set_role", "admin", weaker, caller=ops) == "role_reserved"


def test_a_first_token_is_taken_once_and_a_revoked_one_does_not_come_back() -> None:
    bench = Bench()
    ops = bench.token("ops", Role(admin=True))
    bench.call(ACCESS_SERVICE, "revoke_token", ROOT.id, caller=ops)
    assert bench.call(ACCESS_SERVICE, "seed", ROOT.id, ROOT.digest) is False
    assert bench.code(STORE, "put", b"k", b"v", caller=bench.root) == "unauthenticated"


def test_with_nobody_to_ask_the_file_of_a_node_names_one_administrator() -> None:
    bench = Bench()
    ops = bench.token("ops", Role(admin=True))
    another = draw_token()
    bench.call(
        ACCESS_SERVICE, "create_token", another.id, another.digest, "admin", "", caller=bench.root
    )
    guard, read = TokenGuard(first=bench.root), bench.state.get
    assert guard.is_configured_admin(bench.root, read)
    for caller in (
        ops,
        Principal(another.id, another.digest),
        Principal(ROOT.id, another.digest),
        Principal(another.id, ROOT.digest),
        Principal(ROOT.id),
        principal_of_certificate("alice"),
        ANONYMOUS,
    ):
        assert not guard.is_configured_admin(caller, read), caller
    assert not TokenGuard(anonymous="ops").is_configured_admin(ANONYMOUS, read)
    assert TokenGuard(anonymous="admin").is_configured_admin(ANONYMOUS, read)
    assert not TokenGuard(anonymous="admin").is_configured_admin(ops, read)


def test_the_administrator_of_a_file_is_none_once_the_token_is_known_to_be_revoked() -> None:
    bench = Bench()
    guard, read = TokenGuard(first=bench.root), bench.state.get
    ops = bench.token("ops", Role(admin=True))
    bench.call(ACCESS_SERVICE, "revoke_token", ROOT.id, caller=ops)
    assert not guard.is_configured_admin(bench.root, read)
    newer = draw_token()  # in the file since all others were lost; nobody has taken it yet
    first = Principal(newer.id, newer.digest)
    assert TokenGuard(first=first).is_configured_admin(first, read)
    nothing = Bench(seeded=False)  # it has not heard of any token: nor of those revoked
    assert not guard.is_configured_admin(bench.root, nothing.state.get)


def test_a_token_of_the_files_id_with_another_role_is_no_administrator() -> None:
    bench = Bench()
    bench.token("app", APP)
    other = draw_token()
    args = (ROOT.id, ROOT.digest, "app", "")
    bench.call(ACCESS_SERVICE, "create_token", other.id, other.digest, "admin", "",
               caller=bench.root)  # fmt: skip
    bench.call(ACCESS_SERVICE, "create_token", *args, caller=bench.root)
    assert not TokenGuard(first=bench.root).is_configured_admin(bench.root, bench.state.get)


def test_a_token_needs_a_role_that_there_is() -> None:
    bench = Bench()
    new = draw_token()
    args = (new.id, new.digest, "app", "")
    assert bench.code(ACCESS_SERVICE, "create_token", *args, caller=bench.root) == "unknown_role"


def test_without_access_control_nobody_is_judged_until_the_cluster_has_it() -> None:
    guard = TokenGuard(is_on=False)
    bench = Primary(guard=guard)
    assert bench.store("put", b"k", b"v", caller=ANONYMOUS) is True
    guard.notice(None)
    assert not guard.is_on
    guard.notice(b"\1")
    with pytest.raises(OperationNotAppliedError):
        bench.store("put", b"k", b"v", caller=ANONYMOUS)
