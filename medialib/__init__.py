"""medialib: one catalogue of the media files on all of a person's machines."""

from __future__ import annotations

from .base import VERSION

__version__ = VERSION
