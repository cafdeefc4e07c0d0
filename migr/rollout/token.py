"""The secret that a rollout server and its own trainer share: nobody else's request is served."""

import os
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "MIGR_ROLLOUT_TOKEN"  # environment variable, for a trainer that does not see the server's home folder
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def new_token(port: int) -> str:
    """The token of a server that starts: the environment's, or a new one in a file that its user alone can read."""
    if token := os.environ.get(VARIABLE):
        return token
    token, path = secrets.token_urlsafe(32), _file(socket.gethostname(), port)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return token


def token_for(url: str) -> str:
    """The token of the server at an address, "" if it is not known here."""
    parts = urlsplit(url)
    host = socket.gethostname() if parts.hostname in LOOPBACK else str(parts.hostname)
    try:
        return os.environ.get(VARIABLE) or _file(host, parts.port or 80).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _file(host: str, port: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "migr" / f"rollout-{host}-{port}.token"
