"""JSON schemas of arguments: what is one, and what can't be used."""

from typing import Any

import pytest

from voxcli.tools.arguments import ARGUMENT_DEPTH, ArgumentSchema, WrongSchema, read_arguments


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string"}, 'its type has to be "object"'),
        ({"type": ["object"]}, 'its type has to be "object"'),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "'text' is not valid"),
        ({"type": "object", "properties": []}, "is not of type 'object'"),
        ({"city": {"type": "string"}}, 'arguments stand under "properties"'),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$ref": "#/$defs/a"}, "a reference leads nowhere"),
        ({"$ref": "#"}, "it refers to itself without end"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "a reference leads nowhere"),
        ({"type": "object", "title": "x" * 100_000}, "characters; at most"),
        ({"type": "object", "properties": {"a": {"const": float("nan")}}}, "it is not JSON"),
        ({"type": "object", "properties": {"a": {"const": object()}}}, "it is not JSON"),
        (endless(), "it is not JSON"),
        (nested(100_000), "it is not JSON"),
    ],
)
def test_what_is_no_schema_of_an_object_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongSchema) as caught:
        ArgumentSchema(schema, trusted=True)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    schema = ArgumentSchema(tree, trusted=True)
    assert schema.problem({"child": {"child": {}}}) == ""
    assert schema.problem({"child": {"child": 3}}) == "child.child: 3 is not of type 'object'"


def test_the_deepest_arguments_fit_a_schema_of_itself() -> None:
    arguments = read_arguments('{"child":' * (ARGUMENT_DEPTH - 1) + "{}" + "}" * (ARGUMENT_DEPTH - 1))
    tree = {"type": "object", "properties": {"child": {"anyOf": [{"$ref": "#"}]}}}
    assert ArgumentSchema(tree, trusted=True).problem(arguments) == ""


def test_a_schema_without_a_type_is_one_of_an_object() -> None:
    assert ArgumentSchema({}, trusted=True).json == {"type": "object", "properties": {}}
    assert ArgumentSchema({"properties": {"a": {}}}, trusted=True).json == {"type": "object", "properties": {"a": {}}}


def test_older_schemas_are_followed_too() -> None:
    above_zero = {"type": "integer", "minimum": 0, "exclusiveMinimum": True}
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "properties": {"a": above_zero}}
    assert ArgumentSchema(schema, trusted=True).problem({"a": 0}) != ""
    assert ArgumentSchema(schema, trusted=True).problem({"a": 1}) == ""


@pytest.mark.parametrize("number", ["1e999", "-1e999", f"1{'0' * 400}"])
def test_a_number_that_is_too_large_is_wrong(number: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.5}}}
    assert ArgumentSchema(schema, trusted=True).problem(read_arguments(f'{{"a": {number}}}')) != ""


def test_expressions_of_a_server_are_not_run() -> None:
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    assert ArgumentSchema(slow, trusted=False).problem({"a": "a" * 60 + "b"}) == ""
    assert "does not match" in ArgumentSchema(slow, trusted=True).problem({"a": "b"})
