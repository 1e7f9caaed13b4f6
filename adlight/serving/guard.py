"""Who may ask: a token, or without one only pages of this very server, under a name of this machine.

Without a token any page that a browser on this machine shows could send images here: from another origin, or, once its
own name has been pointed at 127.0.0.1 (DNS rebinding), even read the answers. The headers Host and Origin, which no
page can change, give both away.
"""

import ipaddress
import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/", "/health")  # the page itself, which holds nothing, and what a load balancer asks
LEAST = 16  # letters of a token


def is_local(host: str) -> bool:
    """Say whether an address or name is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def make_token() -> str:
    """Make up a token that nobody guesses."""
    return secrets.token_urlsafe(24)


class Guard:
    """Answers what may not be asked with 401 or 403, before anything of it is read.

    Args:
        app: what answers the rest.
        token: to be sent as `Authorization: Bearer <token>`; None: requests must come from this machine and page.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = self.refuse(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refuse(self, headers: Headers, path: str) -> JSONResponse | None:
        """Give the answer to a request that is refused; None to one that may pass."""
        if self.token is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if path in OPEN or secrets.compare_digest(given.encode(), self.token.encode()):
                return None
            line = "a token is needed: send Authorization: Bearer <token>, as printed by adlight.serve"
            return JSONResponse({"error": line}, 401, {"www-authenticate": "Bearer"})
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_local(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host):
            return JSONResponse({"error": f"Host {host!r} is no name of this machine: set a token"}, 403)
        if origin not in (None, f"http://{host}"):
            return JSONResponse({"error": f"requests from pages of {origin!r} are refused: set a token"}, 403)
        return None
