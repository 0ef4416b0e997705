"""Loading a user's service by the name of its class: "myshop.service:Shop"."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

from cluster.services.signatures import ServiceError
from datapath.service import Service

_EXAMPLE = 'write it like class = "myshop.service:Shop"'


def load_service(spec: str, folder: Path | None = None) -> Service:
    """Import a module and make an instance of a class in it, without arguments.

    `folder`: is searched for modules first. Raises ServiceError that names what is wrong and the
    fix.
    """
    module_name, colon, class_name = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise ServiceError(f"{spec!r} is not module:Class; {_EXAMPLE}")
    if folder is not None:
        if not folder.is_dir():
            raise ServiceError(f"{folder}, where its module is to be found, is no directory")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    found = getattr(_import(module_name, class_name), class_name, None)
    if found is None:
        module = sys.modules[module_name]
        names = [
            name for name, item in vars(module).items()
            if isinstance(item, type) and issubclass(item, Service) and item is not Service
        ]  # fmt: skip
        close = difflib.get_close_matches(class_name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none'}"
        raise ServiceError(f"{module.__file__} has no class {class_name!r}; {hint}")
    if not isinstance(found, type) or not issubclass(found, Service):
        raise ServiceError(f"{spec} is not a service: write class {class_name}(onecopy.Service)")
    try:
        service = found()
    except Exception as error:  # the user's own code may raise anything
        raise ServiceError(
            f"{spec} cannot be made: {error!r}. It is made without arguments, on every replica"
        ) from error
    if not hasattr(service, "operations"):
        raise ServiceError(f"{spec}: its __init__ has to call super().__init__()")
    return service


def _import(module_name: str, class_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ServiceError(
                f"there is no module {missing!r}: install it where this node runs, or name the "
                'directory it is in with path = "…" (relative to the configuration file)'
            ) from None
        raise ServiceError(
            f"{module_name} cannot be imported: it needs {missing!r}, which is not installed here"
        ) from error
    except Exception as error:
        raise ServiceError(
            f"{module_name} cannot be imported for its {class_name}: {error!r}"
        ) from error
