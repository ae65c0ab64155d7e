"""Where a page ended, as a text for the one who asks for the next; and how long a page may be."""

from __future__ import annotations

import base64
import json
import math

from .catalog_filter import FilterError
from .catalog_rows import INT64_MAX
from .ingest_records import is_clean_text

PAGE_LIMIT = 1000
PAGE_DEFAULT = 100


def encode_token(*parts) -> str:
    packed = json.dumps(parts, separators=(",", ":")).encode("utf-8")
    return base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")


def decode_token(token, length: int) -> list:
    """The parts of a `next` of ours; FilterError for anything else."""
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        parts = json.loads(packed)
    except (TypeError, ValueError):
        parts = None
    if not isinstance(parts, list) or len(parts) != length or not all(map(is_bindable, parts)):
        raise FilterError("after must be the next of an earlier answer to the same question")
    return parts


def is_bindable(part) -> bool:
    """Whether SQLite can be asked for it; tokens are kept by whoever asks, and may come changed."""
    if type(part) is int:
        return -INT64_MAX <= part <= INT64_MAX
    if type(part) is float:
        return math.isfinite(part)
    return is_clean_text(part)


def page_limit(body: dict, default: int = PAGE_DEFAULT, highest: int = PAGE_LIMIT) -> int:
    limit = body.get("limit", default)
    if type(limit) is not int or not 1 <= limit <= highest:
        raise FilterError(f"limit must be a whole number from 1 to {highest}")
    return limit
