"""Whether the hub can be reached at all, known in seconds: its client tries five times, and waits longer each time."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

_SECONDS = 5.0
_HUB = "https://huggingface.co"
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def why_no_hub() -> str | None:
    """Why a hub name can only be one that was downloaded before; None where the hub answers, or a proxy decides."""
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if asked or any(os.environ.get(name) for name in _PROXIES):  # offline as asked: the client tries nothing
        return None
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
    if parts.hostname is None:
        return None
    try:
        socket.create_connection((parts.hostname, parts.port or 443), _SECONDS).close()
    except OSError as error:
        return f"no network: {parts.hostname}: {error.strerror or error}"
    return None
