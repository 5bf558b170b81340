"""OpenAPI 3.1 from the registered operations. Must not: hold anything that the operations do not say."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from comfyd import __version__
from comfyd.api.operation import Operation
from comfyd.api.wire import ErrorBody

REF = "#/components/schemas/{model}"
ALWAYS = (403,)
WITH_BODY = (400, 408, 413, 415, 422)
WITH_QUERY = (400, 422)
Mode = Literal["validation", "serialization"]


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document as plain data."""
    wanted: dict[tuple[type[BaseModel], Mode], None] = {(ErrorBody, "serialization"): None}
    for one in operations:
        for model, mode in ((one.body, "validation"), (one.query, "validation"), (one.response, "serialization")):
            if model is not None:
                wanted[(model, mode)] = None  # type: ignore[index]
    refs, shared = models_json_schema(list(wanted), ref_template=REF)
    schemas = shared.get("$defs", {})
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        for index, path in enumerate(one.paths):
            entry = _operation(one, refs, schemas)
            entry["operationId"] = one.name if index == 0 else f"{one.name}_{index + 1}"
            paths.setdefault(path, {})[one.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "comfyd",
            "version": __version__,
            "description": "Keeps the right ComfyUI instances alive on one GPU box and runs workflow tasks on them.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(one: Operation, refs: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    summary, _, rest = (one.handler.__doc__ or one.name).strip().partition("\n")
    entry: dict[str, Any] = {
        "summary": summary,
        "tags": [one.handler.__module__.rpartition(".")[2]],
        "x-scope": one.scope,
        "parameters": _parameters(one, refs, schemas),
        "responses": _responses(one, refs),
    }
    if rest.strip():
        entry["description"] = " ".join(rest.split())
    if one.body is not None:
        content = {"application/json": {"schema": refs[(one.body, "validation")]}}
        entry["requestBody"] = {"required": one.body_required, "content": content}
    return entry


def _parameters(one: Operation, refs: Any, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", one.path)
    ]
    if one.query is not None:
        schema = schemas[refs[(one.query, "validation")]["$ref"].rpartition("/")[2]]
        required = schema.get("required", ())
        found += [
            {"name": name, "in": "query", "required": name in required, "schema": about}
            for name, about in schema.get("properties", {}).items()
        ]
    return found


def _responses(one: Operation, refs: Any) -> dict[str, Any]:
    schema = refs[(one.response, "serialization")] if one.response else {"type": "string"}
    responses: dict[str, Any] = {
        str(one.status): {"description": "as asked", "content": {one.media: {"schema": schema}}}
    }
    statuses = {*one.errors, *ALWAYS, *(WITH_BODY if one.body else ()), *(WITH_QUERY if one.query else ()), 500}
    failure = {"application/json": {"schema": refs[(ErrorBody, "serialization")]}}
    for status in sorted(statuses):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": failure}
    return responses
