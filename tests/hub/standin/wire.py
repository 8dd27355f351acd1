"""The wire under the stand-in: HTTP in threads, bytes counted, and connections cut on demand."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.hub.standin.routes import Call, Refusal, Reply, answer

if TYPE_CHECKING:
    from tests.hub.standin.server import StandIn

PIECE = 1 << 16


@dataclass
class Request:
    """What was asked and what went over the wire: bytes of bodies, without headers.

    ``path`` is unquoted and carries the query; ``range`` is the header of that name.
    """

    method: str
    path: str
    status: int = 0
    range: str | None = None
    received: int = 0
    sent: int = 0
    user: str | None = None


@dataclass
class Fault:
    """What goes wrong, for how many requests."""

    match: re.Pattern[str]
    method: str | None
    status: int | None
    body: bytes | None
    cut_after: int | None
    headers: Mapping[str, str]
    lost: bool
    hold: bool
    times: int

    @property
    def waits(self) -> bool:
        """Whether it strikes only once there is more body than it lets through."""
        return self.cut_after is not None and self.status is None and self.body is None


class Server(ThreadingHTTPServer):
    """One origin: the Hub itself, or its storage, which takes signed URLs instead of tokens."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: StandIn, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.storage = hub, storage
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up as they like."""


class Cut(Exception):  # noqa: N818
    """The connection is to be cut here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def serve(self) -> None:
        hub, target = self.server.hub, urlsplit(self.path)
        record = Request(self.command, unquote(self.path), range=self.headers.get("Range"))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        record.user = hub.tokens.get(token)
        hub.requests.append(record)
        fault = hub.strike(record.method, record.path)
        try:
            body = self.take(record, fault)
            call = Call(
                hub=hub,
                method="GET" if self.command == "HEAD" else self.command,
                path=target.path,
                query=dict(parse_qsl(target.query, keep_blank_values=True)),
                headers=self.headers,
                body=body,
                user=record.user,
                token=token or None,
                storage=self.server.storage,
            )
            if fault and (fault.status or fault.body is not None):
                reply = Reply(fault.status or 200, fault.body or b"")
            else:
                try:
                    reply = answer(call)
                except Refusal as refusal:
                    reply = refusal.reply
                except Exception as error:  # the client shall see it, and the test through it
                    message = json.dumps({"error": f"{type(error).__name__}: {error}"})
                    reply = Reply(500, message.encode())
            if fault:
                reply.headers |= fault.headers
                if fault.lost:
                    raise Cut
            self.give(record, reply, None if body else fault)
        except (Cut, ConnectionError, TimeoutError):
            self.close_connection = True
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def cuts(self, fault: Fault | None, size: int) -> int | None:
        """After how many bytes of a body of this size the connection is cut, if at all."""
        if fault is None or fault.cut_after is None or size <= fault.cut_after:
            return None
        return fault.cut_after if self.server.hub.claim(fault) else None

    def take(self, record: Request, fault: Fault | None) -> bytes:
        """Read the body, counting; cut the connection in the middle if told to."""
        found = bytearray()
        for piece in self.pieces():
            cut = self.cuts(fault, len(found) + len(piece))
            kept = piece if cut is None else piece[: cut - len(found)]
            found += kept
            record.received += len(kept)
            if cut is not None:
                raise Cut
        return bytes(found)

    def pieces(self) -> Iterator[bytes]:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            if not piece:
                raise ConnectionError("the client hung up")
            left -= len(piece)
            yield piece

    def give(self, record: Request, reply: Reply, fault: Fault | None) -> None:
        """Answer, counting; cut the connection in the middle if told to."""
        record.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(reply.size))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.cuts(fault, reply.size)
        for piece in reply.pieces(reply.size if cut is None else cut, PIECE):
            record.sent += len(piece)
            self.wfile.write(piece)
        if cut is not None:
            if fault is not None and fault.hold:
                self.server.hub.released.wait()
            raise Cut

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            # What was sent shall still arrive: an end, not a reset.
            self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the tests' output clean."""
