"""Reads the arguments that a model wrote for a tool, and compares them with the tool's JSON schema.

Neither can be trusted: arguments come from a model, schemas may come from a server. No schema makes anything fetched.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from voxcli.printable import first_line, printable

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

ARGUMENT_CHARACTERS = 65_536  # longest arguments; about 16,000 tokens, more than any reply has
ARGUMENT_DEPTH = 32  # deepest nesting; a schema that refers to itself takes several calls for each level
TOO_DEEP = "they are nested too deeply"
SCHEMA_CHARACTERS = 65_536  # longest schema as JSON
PROBLEM_CHARACTERS = 300  # longest description of a mistake
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
# What a schema of an object may have in place of "properties".
OTHER_KEYWORDS = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "additionalProperties", "required"}


class WrongArguments(ValueError):  # noqa: N818 - an answer for the model rather than an error
    """Text that is no JSON object; the message says why, in words for the model."""


class WrongSchema(ValueError):  # noqa: N818 - as above, for whoever wrote the schema
    """What is no JSON schema of an object; the message says why."""


class ArgumentSchema:
    """A JSON schema of arguments."""

    def __init__(self, schema: Mapping[str, Any], *, trusted: bool) -> None:
        """Check and prepare a schema.

        Args:
            trusted: whether its regular expressions are used; some of them take longer than anybody can wait.

        Raises:
            WrongSchema: it is none, or not one of an object.
        """
        self.json = _object_schema(schema)
        self._validator = _validator(self.json, trusted=trusted)
        self.problem({})  # Finds references to nothing, and those that never end.

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """Return what is wrong with arguments, in words for the model; empty if nothing is.

        Raises:
            WrongSchema: the schema itself can't be followed.
        """
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            error = best_match(self._validator.iter_errors(arguments))
        except Unresolvable as unknown:
            raise WrongSchema(f"a reference leads nowhere: {first_line(unknown)}") from unknown
        except RecursionError as endless:
            raise WrongSchema("it refers to itself without end") from endless
        except OverflowError:  # `multipleOf` divides.
            return "a number is too large"
        if error is None:
            return ""
        place = ".".join(str(part) for part in error.absolute_path)
        return _short(f"{place}: {error.message}" if place else error.message)


def read_arguments(text: str) -> dict[str, Any]:
    """Return the JSON object that a model wrote; no text is an empty object.

    Raises:
        WrongArguments: it is no object, is too long, or names a key twice.
    """
    if len(text) > ARGUMENT_CHARACTERS:
        raise WrongArguments(f"they have {len(text)} characters; at most {ARGUMENT_CHARACTERS} are allowed")
    if not text.strip():
        return {}
    try:
        read = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
    except RecursionError as error:
        raise WrongArguments(TOO_DEEP) from error
    except ValueError as error:
        raise WrongArguments(_short(f"they are not JSON: {error}")) from error
    if not isinstance(read, dict):
        raise WrongArguments("they have to be one JSON object")
    if not _is_shallow(read):
        raise WrongArguments(TOO_DEEP)
    return read


def _is_shallow(value: Any, depth: int = ARGUMENT_DEPTH) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a key is there twice")
    return read


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _object_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as plain JSON, with the type that it must have."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongSchema(f"it is not JSON: {first_line(error)}") from error
    if len(text) > SCHEMA_CHARACTERS:
        raise WrongSchema(f"it has {len(text)} characters; at most {SCHEMA_CHARACTERS} are allowed")
    plain: dict[str, Any] = json.loads(text)
    if plain.setdefault("type", "object") != "object":
        raise WrongSchema('its type has to be "object"')
    if "properties" not in plain and len(plain) > 1 and not OTHER_KEYWORDS & plain.keys():
        raise WrongSchema('arguments stand under "properties"')
    plain.setdefault("properties", {})
    return plain


def _validator(schema: dict[str, Any], *, trusted: bool) -> "Validator":
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (SchemaError, Unresolvable) as error:
        raise WrongSchema(_short(str(getattr(error, "message", error)))) from error
    except RecursionError as error:
        raise WrongSchema("it is nested too deeply") from error
    if not trusted:
        kind = extend(kind, {"pattern": _accept, "patternProperties": _accept, "additionalProperties": _accept})
    nothing_fetched: Registry[Any] = EMPTY_REGISTRY
    return kind(schema, registry=nothing_fetched)


def _accept(*_keyword: Any) -> tuple[()]:
    """Check nothing; stands in for a keyword of `jsonschema`."""
    return ()


def _short(text: str) -> str:
    line = " ".join(printable(text, keep="\n\t").split())
    half = PROBLEM_CHARACTERS // 2  # A message begins with the value and ends with what is wrong.
    return line if len(line) <= PROBLEM_CHARACTERS else f"{line[:half]}…{line[-half:]}"
