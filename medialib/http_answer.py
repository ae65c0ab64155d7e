"""From a Reply to the bytes of an answer: JSON, headers that keep a page safe, gzip."""

from __future__ import annotations

import json

from .base import log
from .http_body import gzip_packed
from .http_json import HttpError, Reply, header_text, wants_gzip
from .late import email, http

HTTP_GZIP_FROM = 1 << 10
GZIP_TYPES = ("application/json", "text/", "application/javascript", "image/svg+xml")
JSON_TYPE = "application/json"
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AnswerWriter:
    """Writes heads and bodies with what every answer of one server says."""

    def __init__(self, name: str, page_headers: dict | None):
        self.fixed_headers = {"Server": name, "Cache-Control": "no-store", **SAFE_HEADERS,
                              **(page_headers or {})}

    def head(self, reply, content_type: str | None, more: dict) -> bytes:
        """Status line and headers; what the reply says itself outranks what every answer says."""
        headers = dict(self.fixed_headers)
        if content_type:
            headers["Content-Type"] = content_type
        headers.update(more)
        headers.update(reply.headers)
        reason = http.client.responses.get(reply.status, "Status")
        lines = [f"HTTP/1.1 {int(reply.status)} {reason}"]
        lines += [f"{header_text(name)}: {header_text(value)}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def whole(self, reply: Reply, asked: dict, more: dict, *, head_only: bool = False) -> tuple:
        """(head, body) of a reply to a request with headers `asked`; packed if that is taken."""
        try:
            body, content_type = reply_body(reply)
        except (TypeError, ValueError):
            log.exception("an answer is not JSON")
            reply = HttpError(500, "internal error", "the log of this program says more").reply()
            body, content_type = reply_body(reply)
        if (len(body) > HTTP_GZIP_FROM and wants_gzip(asked)
                and content_type.startswith(GZIP_TYPES)
                and "Content-Encoding" not in reply.headers):
            body = gzip_packed(body)
            more = {**more, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        bodiless = reply.status in (204, 304)
        if not bodiless:
            more = {**more, "Content-Length": len(body)}
        head = self.head(reply, content_type, more)
        return head, b"" if bodiless or head_only else body


def http_date() -> str:
    """Now, as the Date header has it."""
    return email.utils.formatdate(usegmt=True)


def json_bytes(value) -> bytes:
    """JSON as it goes over the wire: UTF-8 without NaN; a lone surrogate stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False,
                          separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def reply_body(reply: Reply) -> tuple:
    """(bytes, content type) of a reply's body."""
    body = reply.body
    if isinstance(body, (bytes, bytearray)):
        return bytes(body), reply.content_type or "application/octet-stream"
    if isinstance(body, str):
        return body.encode("utf-8", "replace"), reply.content_type or "text/plain; charset=utf-8"
    return json_bytes(body), reply.content_type or JSON_TYPE
