"""/openapi.json: the API's description, made from the route table itself."""

from __future__ import annotations

from .base import VERSION

ERROR_SCHEMA = {
    "type": "object", "required": ["ok", "error", "detail"],
    "properties": {"ok": {"const": False}, "error": {"type": "string"},
                   "detail": {"type": "string"}},
}


def openapi_description(routes: list) -> dict:
    """An OpenAPI 3.1 object with every route of the list."""
    paths: dict = {}
    for route in routes:
        paths.setdefault(route["path"], {})[route["method"].lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "medialib host", "version": VERSION,
                 "description": "Queries are JSON bodies. There are no tokens: who may call is "
                                "decided by address, Host and Origin."},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR_SCHEMA}},
    }


def _operation(route: dict) -> dict:
    operation = {
        "summary": route["summary"] or route["path"],
        "operationId": f"{route['method'].lower()}{route['path'].replace('/', '_')}",
        "responses": {
            "200": {"description": "done"},
            "default": {"description": "failed", "content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Error"}}}},
        },
    }
    if route["body"]:
        operation["requestBody"] = {"content": {"application/json": {
            "schema": {"type": "object", "additionalProperties": True}}}}
    return operation
