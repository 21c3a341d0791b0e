"""Holds a request against the service model, with what botocore's client leaves to the server, in AWS's words.

A client checks types, required members and minimum lengths. Patterns, enums, maxima and the size of maps are only
checked by the service: a request that passed the client can still be refused, hence this module.
"""

from __future__ import annotations

from typing import Any

from binventory.sagemaker.local.errors import ServiceError, invalid
from binventory.sagemaker.local.patterns import compile_pattern

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "timestamp": (int, float),
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
}


def check_request(shape: Any, request: Any) -> None:
    """Refuse a request that breaks a rule of its botocore input shape.

    Members that the model does not know are refused too; AWS ignores some of them, but they are a client's mistake.

    Raises:
        ServiceError: ValidationException with one sentence per broken rule, or SerializationException for a value of
            the wrong JSON type.
    """
    found = _structure(shape, request, "")
    if found:
        errors = "error" if len(found) == 1 else "errors"
        raise invalid(f"{len(found)} validation {errors} detected: {'; '.join(found)}")


def _check(shape: Any, value: Any, path: str) -> list[str]:
    _check_type(shape, value, path)
    if shape.type_name == "structure":
        return _structure(shape, value, path)
    broken = [_sentence(value, path, rule) for rule in _own_rules(shape, value)]
    if shape.type_name == "list":
        return broken + _list(shape, value, path)
    if shape.type_name == "map":
        return broken + _map(shape, value, path)
    return broken


def _check_type(shape: Any, value: Any, path: str) -> None:
    expected = JSON_TYPES[shape.type_name]
    if isinstance(value, expected) and (bool in expected or not isinstance(value, bool)):
        return
    kind = type(value).__name__
    raise ServiceError("SerializationException", f"{kind} at '{path}' can not be converted to {shape.type_name}")


def _structure(shape: Any, value: Any, path: str) -> list[str]:
    _check_type(shape, value, path)
    given = {name: member for name, member in value.items() if member is not None}
    found = []
    for name, member in given.items():
        if name not in shape.members:
            found.append(_sentence(member, _below(path, name), f"Member is not known to {shape.name}"))
    for name in shape.required_members:
        if name not in given:
            found.append(_sentence(None, _below(path, name), "Member must not be null"))
    for name, member_shape in shape.members.items():
        if name in given:
            found += _check(member_shape, given[name], _below(path, name))
    if shape.is_tagged_union and len(given) != 1:
        found.append(_sentence(value, path, "Exactly one member must be set"))
    return found


def _list(shape: Any, value: list[Any], path: str) -> list[str]:
    found = []
    for position, element in enumerate(value, 1):
        if shape.member.type_name in ("structure", "list", "map"):
            found += _check(shape.member, element, f"{path}.{position}.member")
        else:
            _check_type(shape.member, element, f"{path}.{position}.member")
            if _own_rules(shape.member, element):
                found.append(_sentence(value, path, f"Member must satisfy constraint: {_all_rules(shape.member)}"))
                break
    return found


def _map(shape: Any, value: dict[str, Any], path: str) -> list[str]:
    found = []
    if any(_own_rules(shape.key, key) for key in value):
        found.append(_sentence(value, path, f"Map keys must satisfy constraint: {_all_rules(shape.key)}"))
    is_scalar = shape.value.type_name not in ("structure", "list", "map")
    for key, element in value.items():
        if not is_scalar:
            found += _check(shape.value, element, f"{path}.{key}.member")
            continue
        _check_type(shape.value, element, f"{path}.{key}.member")
        if _own_rules(shape.value, element):
            found.append(_sentence(value, path, f"Map value must satisfy constraint: {_all_rules(shape.value)}"))
            break
    return found


def _own_rules(shape: Any, value: Any) -> list[str]:
    """The rules of this shape alone that the value breaks."""
    rules = shape.metadata
    broken = []
    if shape.type_name in ("string", "list", "map"):
        if len(value) > rules.get("max", len(value)):
            broken.append(f"Member must have length less than or equal to {rules['max']}")
        if len(value) < rules.get("min", 0):
            broken.append(f"Member must have length greater than or equal to {rules['min']}")
    elif shape.type_name in ("integer", "long", "float", "double"):
        if value > rules.get("max", value):
            broken.append(f"Member must have value less than or equal to {rules['max']}")
        if value < rules.get("min", value):
            broken.append(f"Member must have value greater than or equal to {rules['min']}")
    if "enum" in rules and value not in rules["enum"]:
        broken.append(f"Member must satisfy enum value set: [{', '.join(rules['enum'])}]")
    if "pattern" in rules and not compile_pattern(rules["pattern"]).fullmatch(value):
        broken.append(f"Member must satisfy regular expression pattern: {rules['pattern']}")
    return broken


def _all_rules(shape: Any) -> str:
    """Every rule of a scalar shape: for keys, values and elements AWS names them all, whichever is broken."""
    rules = shape.metadata
    number = "length" if shape.type_name == "string" else "value"
    named = []
    if "max" in rules:
        named.append(f"Member must have {number} less than or equal to {rules['max']}")
    if "min" in rules or "max" in rules:
        named.append(f"Member must have {number} greater than or equal to {rules.get('min', 0)}")
    if "enum" in rules:
        named.append(f"Member must satisfy enum value set: [{', '.join(rules['enum'])}]")
    if "pattern" in rules:
        named.append(f"Member must satisfy regular expression pattern: {rules['pattern']}")
    return f"[{', '.join(named)}]"


def _sentence(value: Any, path: str, rule: str) -> str:
    shown = "null" if value is None else f"'{_shown(value)}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {rule}"


def _shown(value: Any) -> str:
    """The value as Java prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_shown(element)}" for key, element in value.items()) + "}"
    return str(value)


def _below(path: str, name: str) -> str:
    lowered = name[0].lower() + name[1:]
    return f"{path}.{lowered}" if path else lowered
