"""Whether the hub can be reached at all, and whether a name is there without it: known in seconds, before a library is
imported. The hub's client tries five times, and waits longer each time; torch and transformers take seconds more.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import UsageError

_SECONDS = 3.0
"""For the resolver of names and all addresses together; each alone may take longer by itself."""
_REMEMBERED_SECONDS = 30.0
"""How long a hub that did not answer is not asked again: a run asks for config, tokenizer and weights."""
_HUB = "https://huggingface.co"
HUB_SCHEME = "hf://"
"""Before the name of a file on the hub."""
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
_unanswered: dict[tuple[str, int], tuple[float, str]] = {}
"""When a host and port did not answer, and what was said of it."""


def why_no_hub() -> str | None:
    """Why a hub name can only be one that was downloaded before; None where the hub answers, or a proxy decides."""
    if _is_offline() or any(os.environ.get(name) for name in _PROXIES):  # offline: the client tries nothing
        return None
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
    if parts.hostname is None:
        return None
    place = parts.hostname, parts.port or 443
    since, told = _unanswered.get(place, (-_REMEMBERED_SECONDS, ""))
    if time.monotonic() - since < _REMEMBERED_SECONDS:
        return told
    reason = _why_silent(*place)
    if reason is None:
        return None
    _unanswered[place] = time.monotonic(), f"no network: {parts.hostname}: {reason}"
    return _unanswered[place][1]


def refuse_unreachable(flag: str, name: str | None) -> None:
    """Refuses a name of the hub that can be neither downloaded nor found among what was.

    Raises:
        UsageError: naming the flag, and why the hub is not asked.
    """
    plain = (name or "").partition("@")[0]
    if not _NAME.fullmatch(plain) or Path(plain).exists() or hub_folder(plain).is_dir():
        return
    reason = "HF_HUB_OFFLINE is set, and it was not downloaded before" if _is_offline() else why_no_hub()
    if reason is not None:
        raise UsageError(
            f"{flag} is neither a folder nor a model of the hub",
            where=name,
            got=reason,
            do="Check the path; or download the model where there is a network, and name its folder",
        )


def refuse_unreachable_files(flag: str, names: Iterable[str]) -> None:
    """Refuses files of the hub where it cannot be asked: nothing of them is kept.

    Raises:
        UsageError: naming the flag, and why the hub is not asked.
    """
    name = next((name for name in names if name.startswith(HUB_SCHEME)), None)
    reason = None if name is None else "HF_HUB_OFFLINE is set" if _is_offline() else why_no_hub()
    if reason is not None:
        raise UsageError(
            f"{flag} names files on the hub, which cannot be asked",
            where=name,
            got=reason,
            do="Download them where there is a network (`hf download --repo-type dataset`), and name the folder",
        )


def hub_folder(name: str) -> Path:
    """Where the hub's client keeps what it has downloaded of a model."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    home = os.path.expandvars(os.environ.get("HF_HOME", os.path.join(home, "huggingface")))
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(os.path.expanduser(home), "hub"))
    hub = os.path.expandvars(os.environ.get("HF_HUB_CACHE", hub))
    return Path(hub).expanduser() / f"models--{name.replace('/', '--')}"


def _is_offline() -> bool:
    told = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(word in ("1", "ON", "YES", "TRUE") for word in told)


def _why_silent(host: str, port: int) -> str | None:
    """Why nobody answers; None where somebody does. A resolver that waits for its servers is left behind."""
    found = [f"no answer in {_SECONDS:g} s"]

    def ask() -> None:
        try:
            socket.create_connection((host, port), _SECONDS).close()
            found[:] = []
        except OSError as error:
            found[:] = [str(error.strerror or error)]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return found[0] if found else None
