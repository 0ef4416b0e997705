"""The services that `onecopy up --service NAME=module:Class` asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from cluster.config.model import ServiceConfig
from cluster.services.hosting import Host
from cluster.services.loading import load_service
from cluster.services.signatures import ServiceError
from cluster.up.directory import UpError
from datapath.service import SERVICE_NAME_PATTERN


def read_services(options: Iterable[str], data: Path) -> dict[str, ServiceConfig]:
    """Return the services by their names, for a configuration file in `data`.

    Each is loaded once here, so that what is wrong is said before anything is written or started.
    Modules are looked for in the working directory first. Raises UpError.
    """
    found: dict[str, ServiceConfig] = {}
    for option in options:
        name, _, spec = option.partition("=")
        if not re.fullmatch(SERVICE_NAME_PATTERN, name) or not spec:
            raise UpError(
                f"--service {option}: write NAME=module:Class, say shop=myshop:Shop; NAME is 1 to "
                "31 of a-z, 0-9, '_' and '-', beginning with a letter"
            )
        if name in found:
            raise UpError(f"--service {name} is given twice")
        here = Path.cwd()
        module = spec.partition(":")[0].partition(".")[0]
        is_here = bool(module) and ((here / module).is_dir() or (here / f"{module}.py").is_file())
        try:
            Host(name, load_service(spec, here if is_here else None))
        except ServiceError as error:
            where = "" if is_here else f" (nor is there a {module}.py in {here})"
            raise UpError(f"--service {option}: {error}{where}") from None
        path = os.path.relpath(here, data.resolve()) if is_here else ""
        found[name] = ServiceConfig(spec=spec, path=path)
    return found
