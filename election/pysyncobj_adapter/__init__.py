"""The hardened PySyncObj adapter: the only package that knows which library is behind it."""

from election.pysyncobj_adapter.adapter import PySyncObjAgreement
from election.pysyncobj_adapter.raft_thread import AgreementStatus
from election.pysyncobj_adapter.settings import AgreementSettings

__all__ = ["AgreementSettings", "AgreementStatus", "PySyncObjAgreement"]
