"""Access control: requests need a token or, without one, must come from this server's page under a local name.

Without a token, any page open in a browser on this machine could send images here from another origin and, if its
domain name is pointed at 127.0.0.1 (DNS rebinding), even read the answers. Both show in the headers Host and Origin,
which no page can change.
"""

import ipaddress
import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/", "/health")  # the page itself holds no data; load balancers ask for the health


def is_local(host: str) -> bool:
    """Return whether an address or name is a loopback one, which no other machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def make_token() -> str:
    """Draw a random token."""
    return secrets.token_urlsafe(24)


class Guard:
    """Answers forbidden requests with 401 or 403 before reading their bodies.

    Args:
        app: Application that answers all other requests.
        token: Expected in `Authorization: Bearer <token>`; None requires requests from this machine and page.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = self.refuse(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refuse(self, headers: Headers, path: str) -> JSONResponse | None:
        """Return the answer to a forbidden request, or None for an allowed one."""
        if self.token is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if path in OPEN or secrets.compare_digest(given.encode(), self.token.encode()):
                return None
            line = "a token is needed: send Authorization: Bearer <token>, as printed by adlight.serve"
            return JSONResponse({"error": line}, 401, {"www-authenticate": "Bearer"})
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_local(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host):
            return JSONResponse({"error": f"Host {host!r} is not a name of this machine: set a token"}, 403)
        if origin not in (None, f"http://{host}"):
            return JSONResponse({"error": f"requests from pages of {origin!r} are refused: set a token"}, 403)
        return None
