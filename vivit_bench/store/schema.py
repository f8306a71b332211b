"""Whether stored values are what they should be: names and types, from a dataclass or TypedDict."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

_LONGEST = 40


def violations(values: object, schema: type, where: str, *, whole: bool = True) -> Iterator[str]:
    """What a record lacks or has of another type, a line each.

    Names that the schema does not have are no violation: later versions add some.

    Args:
        values: A record, as read from JSON.
        schema: A dataclass, whose fields without a default must be there; or a TypedDict.
        where: Begins the lines.
        whole: Whether what is required and lacks is a violation, too.
    """
    if not isinstance(values, Mapping):
        yield f"{where} is {_kind_of(values)} and no object"
        return
    required = _required(schema)
    for name, kind in get_type_hints(schema).items():
        if name in values:
            if not conforms(values[name], kind):
                yield f"{where} {name} is {_kind_of(values[name])}, not {_name_of(kind)}"
        elif whole and name in required:
            yield f"{where} has no {name}"


def conforms(value: object, kind: Any) -> bool:
    """Whether a JSON value is of a type; an int is a float, a bool neither, a tuple a list."""
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(conforms(value, each) for each in arguments)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(
            conforms(each, arguments[0]) for each in value
        )
    if origin is dict:
        return isinstance(value, dict) and all(
            conforms(each, arguments[1]) for each in value.values()
        )
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return not any(violations(value, kind, ""))
    if issubclass(kind, Enum):
        return value in [each.value for each in kind]
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _required(schema: type) -> frozenset[str]:
    if not dataclasses.is_dataclass(schema):
        return frozenset(getattr(schema, "__required_keys__", ()))
    nothing = dataclasses.MISSING
    return frozenset(
        field.name
        for field in dataclasses.fields(schema)
        if field.default is nothing and field.default_factory is nothing
    )


def _kind_of(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _name_of(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(each.value) for each in kind)}"
    names = {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number"}
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_name_of, get_args(kind)))
    if get_origin(kind) is not None:
        return str(kind)
    return names.get(kind.__name__, kind.__name__)
