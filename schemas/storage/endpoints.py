"""What the environment says of an object store, for obstore and Delta alike."""

from __future__ import annotations

import os

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")
"""Where the environment names a store other than the cloud's own."""


def plain_http_endpoint() -> bool:
    """Whether the environment names an endpoint without TLS."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
