"""A store of objects on this machine, and what is in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

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
