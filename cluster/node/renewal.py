"""Taking up changed certificates and a changed secret while the node runs; telling what expires."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from cluster.api.groups import KnownGroups
from cluster.certificates.node_tls import NodeTls, signature_of
from cluster.config.file import load_config
from cluster.config.model import ClusterConfig
from cluster.node.parts import Parts
from cluster.node.settings import secrets_of

logger = logging.getLogger(__name__)

LOOK_AT_FILES_INTERVAL_S = 2.0
"""How often the files are looked at; SIGHUP has them looked at now."""
REMIND_INTERVAL_S = 601.0
"""How often a node repeats what expires, to itself and the others: notices last ten minutes."""


class Renewal:
    """`tls` is None on a node without TLS. `close_clients` ends clients' connections whose
    certificate (DER) is refused from now on. `groups`: who asks other groups, if there are any.
    """

    def __init__(
        self,
        parts: Parts,
        tls: NodeTls | None,
        close_clients: Callable[[Callable[[bytes], bool]], None],
        groups: KnownGroups | None,
    ) -> None:
        self._parts = parts
        self._tls = tls
        self._close_clients = close_clients
        self._groups = groups
        self._asked = asyncio.Event()
        self._told: dict[str, float] = {}
        self._seen = self._signature()

    def look(self) -> None:
        """Look at the files now, whether they seem to have changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the files again and again."""
        for warning in self._tls.load_warnings if self._tls is not None else ():
            logger.warning("%s", warning)
        while True:
            self._remind()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_FILES_INTERVAL_S):
                    await self._asked.wait()
            # Not here: the files may be on a disk that does not answer.
            now = await asyncio.to_thread(self._signature)
            if self._asked.is_set() or now != self._seen:
                self._asked.clear()
                self._seen = now
                self._take_up()

    def _signature(self) -> object:
        config = self._parts.config
        own = signature_of((config.path, config.secret_source))
        return own, self._tls.signature() if self._tls is not None else ()

    def _take_up(self) -> None:
        """Use what the files hold now, where it passes every check; else go on as before."""
        try:
            config = load_config(self._parts.config.path)
        except (OSError, ValueError) as error:  # ConfigError is one
            logger.warning("the changed configuration is not used: %s", error)
            return
        if self._parts.node_id not in config.nodes:
            logger.warning("%s: nodes.%s is missing", config.path, self._parts.node_id)
            return
        if config.groups != self._parts.config.groups:
            logger.warning("%s: a running node keeps its [groups]", config.path)
            config = msgspec.structs.replace(config, groups=self._parts.config.groups)
        self._take_up_secret(config)
        if config.tls.is_on != (self._tls is not None):
            logger.warning("%s: [tls] is switched on or off only by a restart", config.path)
        elif self._tls is not None:
            self._take_up_certificates(config, self._tls)

    def _take_up_secret(self, config: ClusterConfig) -> None:
        secret = self._parts.mesh.secret
        if bool(config.secret) != bool(secret):
            logger.warning("%s: a first or last secret is taken up only by a restart", config.path)
        elif config.secret and secret.replace(*secrets_of(config)):
            count = len(config.secrets)
            logger.info("took up a changed %s: %d accepted", config.secret_field, count)

    def _take_up_certificates(self, config: ClusterConfig, tls: NodeTls) -> None:
        if not tls.take_up(config):
            logger.error("changed files of [tls] are not used: %s", tls.problem)
            return
        logger.info("took up the files of [tls]: %s", tls.description)
        self._parts.mesh.close_links(tls.is_revoked, "its certificate has been revoked")
        self._close_clients(tls.is_revoked)
        if self._groups is not None:
            self._groups.renew(config.tls.for_node(self._parts.node_id))

    def _remind(self) -> None:
        now = asyncio.get_running_loop().time()
        warnings = self._tls.warnings() if self._tls is not None else ()
        for text in warnings:
            if now - self._told.get(text, float("-inf")) >= REMIND_INTERVAL_S:
                self._told[text] = now
                self._parts.registry.report(text)
                logger.warning("%s", text)
        self._told = {text: at for text, at in self._told.items() if text in warnings}
