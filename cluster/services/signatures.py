"""What a user's service offers: its methods, their arguments and results, read from annotations.

The arguments of a method become a msgspec struct, so that decoding checks their names and types,
and OpenAPI's schemas come from the same source. Everything that cannot work is refused when the
service is loaded, not when it is first called.
"""

from __future__ import annotations

import hashlib
import inspect
import keyword
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from cluster.services.timers import Timer, timer_of
from datapath.service import SERVICE_NAME_PATTERN, STORE_NAME, Service

MAX_METHODS = 200
"""Of one service: each is a label of the metrics, and a path of the API."""
RESERVED_ARGUMENTS = frozenset({"consistency", "max_staleness_ms", "timeout_ms"})
"""What a query cannot call its arguments: the request's own parameters stand beside them."""

RESERVED_METHODS = frozenset({"call"})
"""What no method can be called: `AsyncClient.service(…).call` is a method of the proxy."""
OWN_NAMES = frozenset(
    name for name in (*vars(Service), *vars(Service())) if not name.startswith("_")
)
"""What `Service` has itself: other things of a user's class need other names."""
SETTINGS = frozenset({"name", "version", "scans"})
"""Those of them that a class may set."""

Kind = Literal["operation", "query", "timer"]


class ServiceError(ValueError):
    """A class cannot be hosted. `str(error)` names the class and the method, and says the fix."""


class ArgumentError(ValueError):
    """The arguments of a call are not what the method takes. `str(error)` names the argument."""


class ServiceMethod(msgspec.Struct, frozen=True):
    """One method. `arguments` is a struct type with a field per argument, `result` a type."""

    name: str
    kind: Kind
    arguments: type[msgspec.Struct]
    result: Any
    is_async: bool
    summary: str
    timer: Timer | None = None

    def decode(self, body: bytes, *, from_text: bool = False) -> dict[str, Any]:
        """Return the named arguments that stand in a JSON object.

        `from_text`: all values came as text, as in a query string: "2" is a number where the method
        takes one. Raises ArgumentError.
        """
        try:
            found = msgspec.json.decode(body, type=self.arguments, strict=not from_text)
        except msgspec.ValidationError as error:
            raise ArgumentError(self._complaint(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArgumentError(f"the arguments are not a JSON object: {error}") from None
        return {name: getattr(found, name) for name in self.arguments.__struct_fields__}

    def _complaint(self, problem: str) -> str:
        """Say a msgspec complaint ("Expected `int`, got `str` - at `$.count`") of an argument."""
        text, _, place = problem.partition(" - at `$")
        place = place.rstrip("`").lstrip(".")
        known = ", ".join(self.arguments.__struct_fields__) or "none"
        if missing := re.fullmatch("Object missing required field `(.*)`", text):
            inner = f" in argument {place!r}" if place else ""
            return f"argument {missing[1]!r} is missing{inner}; {self.name} takes: {known}"
        if unknown := re.fullmatch("Object contains unknown field `(.*)`", text):
            inner = f" in argument {place!r}" if place else ""
            return f"there is no argument {unknown[1]!r}{inner}; {self.name} takes: {known}"
        plain = text.replace("`", "")
        if not place:
            return f"the arguments must be a JSON object of named arguments: {plain}"
        return f"argument {place!r}: {plain[:1].lower()}{plain[1:]}"


class Signatures(msgspec.Struct, frozen=True):
    """What a service offers under its name. `code` is a digest of the source it was loaded from."""

    service: str
    version: int
    code: str
    summary: str
    methods: dict[str, ServiceMethod]

    def named(self, *kinds: Kind) -> tuple[str, ...]:
        """Return the names of the methods of these kinds."""
        return tuple(name for name, item in self.methods.items() if item.kind in kinds)


def read_signatures(name: str, service: type[Service]) -> Signatures:
    """Read what a class offers. Raises ServiceError for what could not be hosted."""
    where = f"{service.__module__}:{service.__qualname__}"
    if not re.fullmatch(SERVICE_NAME_PATTERN, name):
        raise ServiceError(
            f"{name!r} is no name for a service: use 1 to 31 of a-z, 0-9, '-' and '_', beginning "
            "with a letter"
        )
    if name == STORE_NAME:
        raise ServiceError(f"{name!r} is the store's own name; choose another for the service")
    _check_names(where, service)
    version: object = service.version
    if type(version) is not int or not 1 <= version < 2**31:
        raise ServiceError(
            f"{where}: version must be a whole number from 1, not {version!r}; it rises by hand "
            "with each change of what the service stores"
        )
    if inspect.iscoroutinefunction(service.migrate):
        raise ServiceError(f"{where}.migrate must be a plain method: write def, not async def")
    methods = {
        found.name: found
        for attribute in dir(service)
        if (found := _method(where, attribute, getattr(service, attribute))) is not None
    }
    if not methods:
        raise ServiceError(
            f"{where} has no methods that can be called: mark some with @operation or @query"
        )
    if len(methods) > MAX_METHODS:
        raise ServiceError(f"{where} has {len(methods)} methods, and may have {MAX_METHODS}")
    return Signatures(name, version, _code_of(service), _summary(service), methods)


def _check_names(where: str, service: type[Service]) -> None:
    """Refuse a class that has something else under a name of `Service`'s own."""
    for parent in service.__mro__:
        for name, item in () if parent in {Service, object} else vars(parent).items():
            is_data = not callable(item) and not hasattr(type(item), "__get__")
            is_marked = hasattr(item, "__onecopy__") or timer_of(item) is not None
            is_plain = inspect.isfunction(item) and not is_marked
            if name not in OWN_NAMES or (
                is_data if name in SETTINGS else name == "migrate" and is_plain
            ):
                continue
            raise ServiceError(_taken(where, name))


def check_instance(signatures: Signatures, service: Service) -> None:
    """Refuse an instance whose attributes stand in the way of `Service`'s own, or of its methods.

    Raises ServiceError.
    """
    where = f"{type(service).__module__}:{type(service).__qualname__}"
    made = Service.__new__(type(service))
    Service.__init__(made)
    for name, item in vars(service).items():
        if name in signatures.methods:
            raise ServiceError(
                f"{where}: self.{name} hides the method {name!r}; rename one of the two"
            )
        if name in SETTINGS:
            raise ServiceError(f"{where}: set {name} in the class, not as self.{name}")
        own = vars(made).get(name)
        is_as_made = own is not None and type(item) is type(own) and set(item) == set(own)
        if name in OWN_NAMES and not is_as_made:
            raise ServiceError(_taken(where, name))


def _taken(where: str, name: str) -> str:
    return (
        f"{where}.{name}: onecopy.Service has a {name!r} of its own; give yours another name, say "
        f"{'my_' + name!r}"
    )


def _method(where: str, name: str, function: Any) -> ServiceMethod | None:
    kind = getattr(function, "__onecopy__", None)
    timer = timer_of(function)
    if timer is not None and kind is not None:
        raise ServiceError(f"{where}.{name}: use @every or @at alone, without @{kind}")
    if timer is not None:
        kind = "timer"
    if kind is None:
        return None
    where = f"{where}.{name}"
    if name.startswith("_"):
        raise ServiceError(f"{where}: what can be called has a name without a leading underscore")
    if name in RESERVED_METHODS:
        raise ServiceError(f"{where}: clients have a {name!r} of their own; rename the method")
    is_async = inspect.iscoroutinefunction(function)
    if is_async and kind == "query":
        raise ServiceError(
            f"{where}: a query must not be async; write def, or make it an @operation"
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ServiceError(f"{where} is a generator: return a list instead of yielding")
    arguments, result = _types(where, function, kind)
    return ServiceMethod(name, kind, arguments, result, is_async, _summary(function), timer)


def _types(
    where: str, function: Callable[..., Any], kind: Kind
) -> tuple[type[msgspec.Struct], Any]:
    """Return a struct of the arguments, and the result's type."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001 -- an annotation may fail in any way
        raise ServiceError(
            f"{where}: its annotations cannot be read: {error}; import what they name at the top "
            "of the module, not under TYPE_CHECKING"
        ) from None
    parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
    if not parameters:
        raise ServiceError(f"{where} takes no transaction: write def {_last(where)}(self, tx, …)")
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in parameters[1:]:  # without the transaction
        name = parameter.name
        if kind == "timer":
            raise ServiceError(f"{where}: a timer takes the transaction alone, and no {name!r}")
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise ServiceError(f"{where}: name each argument; *{name} and **{name} cannot be sent")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ServiceError(f"{where}: arguments are sent by name, and {name!r} has none")
        if name not in hints:
            raise ServiceError(f"{where}: argument {name!r} has no annotation, say {name}: str")
        if kind == "query" and name in RESERVED_ARGUMENTS:
            raise ServiceError(
                f"{where}: {name!r} is a parameter of every read; rename the argument"
            )
        if keyword.iskeyword(name):
            raise ServiceError(f"{where}: {name!r} is a word of Python; rename the argument")
        if parameter.default is parameter.empty:
            fields.append((name, hints[name]))
        else:
            fields.append((name, hints[name], parameter.default))
    title = "".join(part.capitalize() for part in _last(where).split("_")) + "Arguments"
    try:
        arguments = msgspec.defstruct(
            title, fields, kw_only=True, forbid_unknown_fields=True, module=__name__
        )
        msgspec.json.Decoder(arguments)
        msgspec.json.schema(arguments)
    except TypeError as error:
        raise ServiceError(
            f"{where}: an argument is of a type that JSON cannot carry, or has a default that "
            f"cannot be shared ({error}); use what msgspec knows: str, int, float, bool, list[…], "
            "dict[str, …], msgspec.Struct, dataclasses, datetime, bytes (as base64)"
        ) from None
    result = hints.get("return", Any)
    try:
        msgspec.json.schema(result)
    except TypeError as error:
        raise ServiceError(
            f"{where}: its result is of a type that JSON cannot carry ({error}); use what msgspec "
            "knows, say a msgspec.Struct"
        ) from None
    return arguments, result


def _last(where: str) -> str:
    return where.rpartition(".")[2]


def _summary(thing: object) -> str:
    """Return the first line of a docstring, "" where there is none."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _code_of(service: type[Service]) -> str:
    """Return a digest of the module's source, "" where there is none to be read."""
    try:
        source = Path(inspect.getsourcefile(service) or "").read_bytes()
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(source, digest_size=8).hexdigest()
