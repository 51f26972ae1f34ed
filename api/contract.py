"""The OpenAPI document as code: what a call's parameters and body must look like, operation by operation.

The document is `schemas/openapi.yaml`; it is the contract, this module holds requests to it. Responses are held to it
by the tests. Knows nothing of what operations do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from api.errors import ApiError
from streams.events import Problem

BASE = "urn:holdfast:openapi"
_INTEGER = re.compile(r"-?\d{1,19}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([.]\d{1,9})?([Zz]|[+-]\d\d:\d\d)")

_NO_TEXT = "has bytes in it that are no UTF-8, or NUL"
_NO_TEXT_HINT = "of a file with such a name, name the folder that it is in"

FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time")
def _is_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    if not _RFC3339.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter: before the year 1, or after 9999, of UTC
        return False
    return True


@cache
def document() -> Mapping[str, Any]:
    """The parsed document. Shared: never changed by anybody."""
    text = resources.files("schemas").joinpath("openapi.yaml").read_text("utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    # Written out and read back, so that YAML's anchors become plain copies and dates plain text.
    return cast("Mapping[str, Any]", json.loads(json.dumps(yaml.load(text, Loader=loader))))


@cache
def _registry() -> Any:
    resource = DRAFT202012.create_resource(document())
    return Registry().with_resource(BASE, resource)


def validator(pointer: str) -> Any:
    """A validator of the schema at `pointer` (`/components/schemas/Step`) of the document."""
    return Validator({"$ref": f"{BASE}#{pointer}"}, registry=_registry(), format_checker=FORMATS)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operation; `check` holds its schema, `kind` the JSON type that its text is turned into."""

    name: str
    where: str
    required: bool
    kind: str
    default: Any
    check: Any


@dataclass(frozen=True, slots=True)
class Contract:
    """What a call of one operation must look like. `body` is None when it takes none."""

    parameters: tuple[Parameter, ...]
    body: Any
    body_defaults: Mapping[str, Any]


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    """As JSON Schema means it: `$` is the very end, where Python's also stands before a last line feed."""
    exact = pattern.removesuffix("$") + (r"\Z" if pattern.endswith("$") else "")
    if isinstance(instance, str) and not re.search(exact, instance):
        yield ValidationError(f"{pattern!r} is not matched")


Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


def _pointer(*parts: str) -> str:
    return "".join("/" + p.replace("~", "~0").replace("/", "~1") for p in parts)


def operations() -> Iterator[tuple[str, str, str]]:
    """`(operationId, METHOD, path)` of everything in the document."""
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield operation["operationId"], method.upper(), path


def resolve(value: Any) -> Any:
    """What a `$ref` at the top of `value` stands for."""
    while isinstance(value, Mapping) and "$ref" in value:
        found: Any = document()
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        # Keywords beside a $ref (a description, a default) count too.
        value = {**found, **{k: v for k, v in value.items() if k != "$ref"}}
    return value


@cache
def contract(operation: str) -> Contract:
    """The contract of an operation by id. Raises KeyError when the document has no such operation."""
    method, path = {name: (method, path) for name, method, path in operations()}[operation]
    method = method.lower()
    item = document()["paths"][path]
    found = [*item.get("parameters", ()), *item[method].get("parameters", ())]
    body = item[method].get("requestBody")
    check = None
    defaults: dict[str, Any] = {}
    if body is not None:
        check = validator(_pointer("paths", path, method, "requestBody", "content", "application/json", "schema"))
        schema = resolve(body["content"]["application/json"]["schema"])
        for field, given in schema.get("properties", {}).items():
            field_schema = resolve(given)
            if "default" in field_schema:
                defaults[field] = field_schema["default"]
    return Contract(tuple(_parameter(p) for p in found), check, defaults)


def _parameter(given: Mapping[str, Any]) -> Parameter:
    p = resolve(given)
    schema = resolve(p["schema"])
    kind = schema.get("type", "string")
    check = Validator(
        {**p["schema"], "$id": f"{BASE}:parameter"} if "$ref" not in p["schema"] else _absolute(p["schema"]),
        registry=_registry(),
        format_checker=FORMATS,
    )
    return Parameter(p["name"], p["in"], p.get("required", False), kind, schema.get("default"), check)


def _absolute(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "$ref": BASE + schema["$ref"]}


def check_parameters(operation: str, given: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Values by name, typed, defaults filled in, from `{(where, name): text}`. Unknown query parameters are refused.

    Raises `ApiError` 422 (`request-invalid`) that names every wrong parameter.
    """
    found = contract(operation)
    known = {(p.where, p.name.lower() if p.where == "header" else p.name) for p in found.parameters}
    problems: list[Problem] = []
    for where, name in given:
        if where == "query" and (where, name) not in known:
            names = ", ".join(sorted(n for w, n in known if w == "query")) or "none"
            problems.append(Problem("parameter-unknown", f"there is no parameter {name!r}", f"known are: {names}"))
    out: dict[str, Any] = {}
    for p in found.parameters:
        text = given.get((p.where, p.name.lower() if p.where == "header" else p.name))
        if text is None:
            if p.required:
                problems.append(Problem("parameter-missing", f"{p.name} is missing"))
            out[p.name] = p.default
            continue
        if not _is_text(text):
            problems.append(Problem("parameter-invalid", f"{p.name}: {_NO_TEXT}", _NO_TEXT_HINT))
            continue
        value = _typed(text, p.kind)
        wrong = next(iter(p.check.iter_errors(value)), None)
        if wrong is not None:
            problems.append(Problem("parameter-invalid", f"{p.name}: {_sentence(wrong)}"))
        out[p.name] = value
    if problems:
        raise invalid(problems)
    return out


def _typed(text: str, kind: str) -> Any:
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def check_body(operation: str, raw: bytes, content_type: str) -> dict[str, Any]:
    """The body as a JSON object, defaults filled in. Raises `ApiError` 415 or 422; values are never in its text, since
    they may be secrets."""
    found = contract(operation)
    if found.body is None:
        if raw.strip() not in (b"", b"{}"):
            raise ApiError(422, "body-unexpected", "this operation takes no body")
        return {}
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "body-type", "the body must be JSON", "send `Content-Type: application/json`")
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(422, "body-invalid", "the body is not valid JSON") from error
    if not _is_text(value):
        raise ApiError(422, "text-invalid", f"a text in the body {_NO_TEXT}", _NO_TEXT_HINT)
    wrong = sorted(found.body.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
    if wrong:
        raise invalid([Problem("field-invalid", f"{_where(e)}: {_sentence(e)}") for e in wrong[:20]])
    return {**found.body_defaults, **value}


def _is_text(value: Any) -> bool:
    """Whether all texts in it can stand in the log and in PostgreSQL: neither NUL nor half of a surrogate pair, which JSON can
    say, and which a command line makes of an argument that is not UTF-8."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str) and ("\0" in one or any("\ud800" <= c <= "\udfff" for c in one)):
            return False
        if isinstance(one, dict):
            todo += [*one, *one.values()]
        elif isinstance(one, list):
            todo += one
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def invalid(problems: list[Problem]) -> ApiError:
    """422 with every wrong field."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ApiError(422, "request-invalid", problems[0].message + more, problems[0].hint, problems=problems)


def _where(error: ValidationError) -> str:
    return ".".join(str(p) for p in error.absolute_path) or "the body"


def _sentence(error: ValidationError) -> str:
    """What is wrong, without the value."""
    expected: Any = error.validator_value
    match error.validator:
        case "type":
            kinds = expected if isinstance(expected, list) else [expected]
            return "must be " + " or ".join(str(k) for k in kinds)
        case "required":
            return "needs `" + error.message.split("'")[1] + "`"
        case "additionalProperties":
            known = resolve(error.schema).get("properties", {}) if isinstance(error.schema, Mapping) else {}
            extra = [k for k in cast("Mapping[str, Any]", error.instance) if k not in known]
            return "there is no " + ", ".join(f"`{k}`" for k in extra[:5])
        case "enum":
            return "must be one of " + ", ".join(str(v) for v in expected)
        case "pattern":
            meant = error.schema.get("description") if isinstance(error.schema, Mapping) else None
            return f"must be {meant}" if meant else f"must look like {expected}"
        case "format":
            return "must be a time such as 2026-01-31T12:00:00Z" if expected == "date-time" else f"must be a {expected}"
        case "minimum" | "maximum":
            return f"must be {'at least' if error.validator == 'minimum' else 'at most'} {expected}"
        case "minLength" | "maxLength":
            return f"must have {'at least' if error.validator == 'minLength' else 'at most'} {expected} characters"
        case _:
            return f"does not fit ({error.validator} {expected})"
