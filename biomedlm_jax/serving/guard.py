"""Who may ask, and what is written down of it: around every request.

A server on this machine's own address that asks for no token can be reached by any web page that is
open in a browser here. Two headers tell: a page of another site names itself in Origin, and a name
that was made to point here (DNS rebinding) stands in Host. Both are refused.
"""

import datetime
import hmac
import ipaddress
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from biomedlm_jax.entry import UserError
from biomedlm_jax.serving import answers
from biomedlm_jax.serving.answers import Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TOKEN_LENGTH = 16  # characters, at least
OPEN = ("/", "/health")  # paths that need no token; to those who lack it they tell nothing
KNOWN = web.RequestKey("known", bool)  # whether who asks may be told everything
TOKENS = web.RequestKey("tokens", tuple)  # of the prompts and of what was written, for the log
END = web.RequestKey("end", str)  # how a stream ended, where its status does not tell
LOG = logging.getLogger("biomedlm_jax.serve")


def check_token(token: str | None, host: str, where: str) -> str | None:
    """The token, fit for a header.

    where: it was found, for messages.

    Raises:
      UserError: there is none and `host` is not this machine's own, or it is short or odd.
    """
    if token is None:
        if not own(host):
            raise UserError(
                f"--host={host} can be reached from other machines, so a token is needed: put one "
                "into a file and name it with --token_file, or set BIOMEDLM_TOKEN"
            )
        return None
    if len(token) < TOKEN_LENGTH or not all("!" <= char <= "~" for char in token):
        raise UserError(
            f"the token in {where} has {len(token)} characters; it has to have at least "
            f"{TOKEN_LENGTH}, of ASCII without spaces: "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return token


def own(host: str) -> bool:
    """Whether an address is this machine's own. Names other than localhost are not looked up.

    Raises:
      UserError: no address.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise UserError(
            f"--host={host} is no address; 127.0.0.1 is this machine's own, 0.0.0.0 all it has"
        ) from None


def asker(token: str | None) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """A middleware that refuses whoever may not ask.

    token: what has to be known; None serves this machine alone.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            raise Refused(400, f"{len(hosts)} Host headers; there has to be one")
        if token is None and not _own_name(hosts[0]):
            raise Refused(
                403,
                "the Host header names another machine; this server is for its own machine only: "
                "use http://127.0.0.1 or http://localhost",
                code="foreign_host",
            )
        origin = request.headers.get("Origin")
        if origin is not None and _netloc(origin) != hosts[0].lower():
            raise Refused(
                403,
                "the request comes from a web page of another origin; this server answers its own "
                "page and programs, which send no Origin header",
                code="foreign_origin",
            )
        request[KNOWN] = token is None or _has(request, token)
        if not request[KNOWN] and request.path not in OPEN:
            raise Refused(
                401,
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    return check


def _has(request: web.Request, token: str) -> bool:
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    found = rest.strip().encode("utf-8", "surrogateescape")
    return hmac.compare_digest(found, token.encode()) and kind.lower() == "bearer"


def _own_name(host: str) -> bool:
    """Whether a Host header names this machine. Ports may differ: a tunnel has its own."""
    try:
        name = urlsplit(f"//{host}").hostname
        return name is not None and own(name)
    except ValueError:  # UserError too
        return False


def _netloc(origin: str) -> str | None:
    """Host and port of an origin. Its scheme is not compared, for a proxy may speak TLS."""
    try:
        parts = urlsplit(origin.lower())
        return parts.netloc or None
    except ValueError:
        return None


@web.middleware
async def recorded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: every end becomes an answer in the API's form and a line of the
    log, which has the time, the kind of request, status, tokens and duration, and no text."""
    start, status = time.monotonic(), "gone"  # unless an answer comes of it
    try:
        response = await _answered(request, handler)
        status = str(response.status)
        return response
    finally:
        resource = request.match_info.route.resource
        path = resource.canonical if resource else "-"
        method = request.method if request.method in ("GET", "POST", "HEAD") else "-"
        prompt, written = request.get(TOKENS, (0, 0))
        now = datetime.datetime.now(datetime.UTC)
        LOG.info(
            f"{now:%Y-%m-%dT%H:%M:%SZ} {method} {path} {request.get(END, status)} "
            f"prompt={prompt} written={written} seconds={time.monotonic() - start:.2f}"
        )


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refusal:
        return refused(refusal)
    except web.HTTPRequestEntityTooLarge as error:
        return refused(Refused(413, error.text or "the body is too large"))
    except web.HTTPNotFound:
        paths = ", ".join(["/", "/health", "/v1/models", "/v1/completions"])
        return refused(Refused(404, f"there is no such page; there are {paths}", code="not_found"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return refused(Refused(405, f"this page takes {allowed}", headers={"Allow": allowed}))
    except web.HTTPException as error:
        return refused(Refused(error.status, error.reason))
    except ConnectionError:  # the client went while it was answered, and has no use for this
        request.setdefault(END, "gone")
        return web.Response()
    except Exception as error:
        # The message is left out: it could hold text.
        frames = "".join(traceback.format_tb(error.__traceback__))
        LOG.error(f"an error of this program: {type(error).__name__}\n{frames}")
        return refused(Refused(500, f"an error of this program ({type(error).__name__})"))


def refused(refusal: Refused) -> web.Response:
    body = answers.encoded(refusal.body())
    headers = {"Content-Type": answers.JSON, **refusal.headers}
    response = web.Response(body=body, status=refusal.status, headers=headers)
    if refusal.status >= 500:
        response.force_close()
    return response


def without_text(record: logging.LogRecord) -> bool:
    """A filter for aiohttp's own log, whose messages and errors quote what was sent."""
    error = record.exc_info[1] if record.exc_info else None
    what = f" ({type(error).__name__})" if error else ""
    record.msg, record.args, record.exc_info = f"a connection ended with an error{what}", (), None
    return True
