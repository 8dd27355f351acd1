"""A store of objects on this machine, and what is in it."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

BUCKET = "models"


class Store:
    """A server, and a client of its own."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer("127.0.0.1", 0)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"

    @property
    def client(self) -> Any:
        import boto3

        return boto3.session.Session().client("s3", endpoint_url=self.endpoint)

    def objects(self, prefix: str) -> dict[str, str]:
        """SHA-256 by name, of what anybody sees."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
        return {
            each["Key"][len(prefix) + 1 :]: hashlib.sha256(
                self.client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
            ).hexdigest()
            for each in found.get("Contents", ())
        }

    def parts(self, prefix: str) -> dict[tuple[str, int], Any]:
        """When each part of unfinished uploads came, by object and number."""
        found = {}
        listed = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{prefix}/")
        for each in listed.get("Uploads", ()):
            place = {"Bucket": BUCKET, "Key": each["Key"], "UploadId": each["UploadId"]}
            for part in self.client.list_parts(**place).get("Parts", ()):
                found[each["Key"], part["PartNumber"]] = part["ETag"]
        return found

    def uploads(self, prefix: str) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"] for each in found.get("Uploads", ())]


REFUSALS = {
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
    "broken": (500, "InternalError"),
    "slow": (503, "SlowDown"),
    "gone": (0, ""),  # the connection ends without an answer
}


class Gate:
    """Stands before a store, and from some part of an upload on refuses all that is asked.

    Args:
        store: Which answers until then.
        refusal: How; a name in :data:`REFUSALS`.
        after: Parts that are let through.
    """

    def __init__(self, store: Store, refusal: str, after: int) -> None:
        self.parts, self.after, self.refusal, self.asked = 0, after, refusal, 0
        lock, address = threading.Lock(), urlsplit(store.endpoint).netloc
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_all(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    is_part = self.command == "PUT" and "partNumber" in parse_qs(
                        urlsplit(self.path).query
                    )
                    gate.parts += is_part
                    shut = gate.parts > gate.after
                    gate.asked += shut
                if shut:
                    self.refuse()
                else:
                    self.forward(body)

            def refuse(self) -> None:
                status, code = REFUSALS[gate.refusal]
                self.close_connection = True
                if not status:
                    return
                text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                self.answer(status, {"Content-Type": "application/xml"}, text)

            def forward(self, body: bytes) -> None:
                other = http.client.HTTPConnection(address)
                other.request(self.command, self.path, body, dict(self.headers))
                found = other.getresponse()
                data = found.read()
                hop = {"connection", "content-length", "transfer-encoding"}
                kept = {k: v for k, v in found.getheaders() if k.lower() not in hop}
                length = found.headers.get("Content-Length") if self.command == "HEAD" else None
                other.close()
                self.answer(found.status, kept, data, length)

            def answer(
                self, status: int, headers: dict[str, str], data: bytes, length: str | None = None
            ) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_all)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with a bucket, which this process and those it starts find by their environment."""
    pytest.importorskip("boto3")
    pytest.importorskip("moto")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        store = Store()
        patch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        store.client.create_bucket(Bucket=BUCKET)
        yield store
        store.server.stop()
