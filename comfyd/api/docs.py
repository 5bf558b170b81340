"""`/openapi.json` and `/docs`: the operations as a document and as a readable page, both made on first request."""

import asyncio
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from aiohttp import web

from comfyd.api.operation import Call, Operation, op

OPERATIONS: web.AppKey[Sequence[Operation]] = web.AppKey("operations", Sequence)
DOCUMENT: web.AppKey[dict[str, Any]] = web.AppKey("document", dict)
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#f5f5f5;padding:.6rem;overflow:auto}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left}
details{border:1px solid #ddd;border-radius:4px;margin:.4rem 0;padding:.3rem .7rem}.m{display:inline-block;width:5rem;
font-weight:bold}@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}
a{color:#8bf}td,th,details{border-color:#444}}"""


async def spec(app: web.Application) -> dict[str, Any]:
    """The OpenAPI document of `app`, made once."""
    made: dict[str, Any] = app[DOCUMENT]
    if not made:
        from comfyd.api.openapi import document

        made.update(await asyncio.to_thread(document, app[OPERATIONS]))
    return made


@op("GET", "/openapi.json", scope="client", response=None, media="application/json")
async def openapi_json(call: Call[None, None]) -> web.Response:
    """This API as OpenAPI 3.1."""
    return web.json_response(await spec(call.request.app))


@op("GET", "/docs", scope="client", response=None, media="text/html")
async def docs_page(call: Call[None, None]) -> web.Response:
    """This API as a page."""
    document = await spec(call.request.app)
    return html_page("comfyd API", _page(document))


def html_page(title: str, body: str) -> web.Response:
    """A page without scripts; nothing outside of it is loaded."""
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>{body}"
    )
    headers = {"Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"}
    return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)


def _page(document: dict[str, Any]) -> str:
    parts = [
        f"<h1>comfyd {escape(document['info']['version'])}</h1><p>{escape(document['info']['description'])}</p>",
        (
            "<p>Machine-readable: <a href='openapi.json'>openapi.json</a>. Every error is "
            "<code>{error: {code, message, details}, detail}</code>.</p>"
        ),
    ]
    tag = ""
    for path, methods in document["paths"].items():
        for method, entry in methods.items():
            if entry["tags"][0] != tag:
                tag = entry["tags"][0]
                parts.append(f"<h2>{escape(tag)}</h2>")
            parts.append(_entry(path, method, entry))
    schemas = "".join(
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return "".join(parts) + f"<h2>Shapes</h2>{schemas}"


def _entry(path: str, method: str, entry: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{p['in']}<td><code>{escape(json.dumps(p['schema']))}</code>"
        for p in entry["parameters"]
    )
    body = entry.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    answers = "".join(
        f"<li><code>{status}</code> {escape(about['description'])} {_link(next(iter(about['content'].values())))}"
        for status, about in entry["responses"].items()
    )
    return (
        f"<details><summary><span class=m>{method.upper()}</span><code>{escape(path)}</code> "
        f"{escape(entry['summary'])}</summary><p>{escape(entry.get('description', ''))}</p>"
        f"<p>Scope: {entry['x-scope']}</p>"
        + (f"<table><tr><th>parameter<th>in<th>shape{rows}</table>" if rows else "")
        + (f"<p>Body: {_link({'schema': body})}</p>" if body else "")
        + f"<ul>{answers}</ul></details>"
    )


def _link(content: dict[str, Any]) -> str:
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    return f"<a href='#{escape(name)}'>{escape(name)}</a>" if name else ""


def _json(schema: Any) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=1))}</pre>"
