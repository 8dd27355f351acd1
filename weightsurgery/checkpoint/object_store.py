"""Objects of an S3-compatible store: the requests an output takes. No other part knows boto3.

Credentials, region and endpoint are found as boto3 finds them: ``AWS_ACCESS_KEY_ID`` and its
siblings, profiles, roles of the machine, ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from weightsurgery.deferred import need
from weightsurgery.errors import OutputError

__all__ = ["CONNECTIONS", "PART", "ObjectPlace", "ObjectStore"]

# Parts of one task that are on their way at a time, and bytes of one.
CONNECTIONS, PART = 4, 16 << 20

_RUN = "weightsurgery-run"

_DENIED = {
    "AccessDenied", "AllAccessDisabled", "ExpiredToken", "Forbidden", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch", "Unauthorized", "401", "403",
}  # fmt: skip
_MISSING = {"NoSuchKey", "NotFound", "404"}

_RIGHTS = (
    "Give them s3:ListBucket and s3:ListBucketMultipartUploads on the bucket, and s3:GetObject,"
    " s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListMultipartUploadParts below"
    " the prefix."
)


@dataclass(frozen=True)
class ObjectPlace:
    """``s3://bucket/prefix``, which stands for a directory.

    Attributes:
        bucket: Where the objects are.
        prefix: What their names begin with, without the slash after it.
        endpoint: The server, where it is not the one that boto3 takes by itself.
    """

    bucket: str
    prefix: str
    endpoint: str | None = None

    @classmethod
    def of(cls, text: str | os.PathLike[str]) -> ObjectPlace | None:
        """The place that a name stands for; None for a path.

        Raises:
            OutputError: A bucket alone, or names that are no names of directories and files.
        """
        text = os.fspath(text)
        if not text.startswith("s3:/"):
            return None
        bucket, _, prefix = text[4:].lstrip("/").rstrip("/").partition("/")
        if not bucket or not prefix or {"", ".", ".."} & set(prefix.split("/")):
            raise OutputError(f"{text}: no place for an output", "Give s3://BUCKET/PREFIX.")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return cls(bucket, prefix, endpoint or None)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class ObjectStore:
    """Requests to the store an output lies in; names are relative to its prefix.

    Args:
        place: Where.

    Raises:
        OutputError: boto3 is not installed, or its configuration is none. From each request: the
            store does not answer, or refuses.
    """

    def __init__(self, place: ObjectPlace) -> None:
        self.place = place
        need("an output on S3 is written with boto3", "boto3", extra="s3", kind=OutputError)
        with _store_errors(place):
            self._client = _client(place.endpoint)

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": f"{self.place.prefix}/{name}"}

    def _pages(self, operation: str, each: str) -> Iterator[Any]:
        pages = self._client.get_paginator(operation)
        within = {"Bucket": self.place.bucket, "Prefix": f"{self.place.prefix}/"}
        with _store_errors(self.place):
            for page in pages.paginate(**within):
                yield from page.get(each, ())

    def sizes(self) -> dict[str, int]:
        """All objects, and their sizes; without those that stand for folders."""
        start, pages = len(self.place.prefix) + 1, self._pages("list_objects_v2", "Contents")
        return {e["Key"][start:]: e["Size"] for e in pages if not e["Key"].endswith("/")}

    def uploads(self) -> set[tuple[str, str]]:
        """Name and id of the uploads that have begun and not ended."""
        start = len(self.place.prefix) + 1
        found = self._pages("list_multipart_uploads", "Uploads")
        return {(each["Key"][start:], each["UploadId"]) for each in found}

    def read(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        with _store_errors(self.place):
            answer = self._asked("get_object", _MISSING, **self._key(name))
            return None if answer is None else bytes(answer["Body"].read())

    def blocks(self, name: str) -> Iterator[bytes]:
        """An object's bytes, a few at a time; none where there is no object."""
        with _store_errors(self.place):
            answer = self._asked("get_object", _MISSING, **self._key(name))
            if answer is not None:
                yield from answer["Body"].iter_chunks(1 << 20)

    def run_of(self, name: str) -> str | None:
        """The run that made an object; None if there is none, or it is another program's."""
        with _store_errors(self.place):
            answer = self._asked("head_object", _MISSING, **self._key(name))
            return None if answer is None else answer.get("Metadata", {}).get(_RUN)

    def put(self, name: str, data: bytes, run: str) -> None:
        """Write a small object."""
        with _store_errors(self.place):
            self._client.put_object(
                **self._key(name), Body=data, ContentMD5=_md5(data), Metadata={_RUN: run}
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        with _store_errors(self.place):
            for name in names:
                self._client.delete_object(**self._key(name))

    def begin(self, name: str, run: str) -> str:
        """Begin an upload in parts; its id."""
        with _store_errors(self.place):
            answer = self._client.create_multipart_upload(**self._key(name), Metadata={_RUN: run})
            return str(answer["UploadId"])

    def put_part(self, name: str, upload: str, number: int, data: bytearray) -> str:
        """Upload a part, which replaces an earlier one of its number; its ETag.

        The store compares what has come with its MD5.
        """
        with _store_errors(self.place):
            answer = self._client.upload_part(
                **self._key(name), UploadId=upload, PartNumber=number, Body=data,
                ContentMD5=_md5(data),
            )  # fmt: skip
            return str(answer["ETag"])

    def parts(self, name: str, upload: str) -> dict[int, tuple[str, int]] | None:
        """ETag and size of the parts that have come, by number; None if the upload is gone."""
        found: dict[int, tuple[str, int]] = {}
        marker, more = 0, True
        with _store_errors(self.place):
            while more:
                answer = self._asked(
                    "list_parts", {"NoSuchUpload", *_MISSING},
                    **self._key(name), UploadId=upload, PartNumberMarker=marker,
                )  # fmt: skip
                if answer is None:
                    return None
                for each in answer.get("Parts", ()):
                    found[each["PartNumber"]] = (each["ETag"], each["Size"])
                more, marker = answer["IsTruncated"], answer.get("NextPartNumberMarker", 0)
        return found

    def complete(self, name: str, upload: str, etags: Mapping[int, str]) -> None:
        """End an upload: its parts are the object from here on."""
        parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
        with _store_errors(self.place):
            self._client.complete_multipart_upload(
                **self._key(name), UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def abort(self, name: str, upload: str) -> None:
        """End an upload, and drop its parts; one that is gone already is none."""
        with _store_errors(self.place):
            gone = {"NoSuchUpload", *_MISSING}
            self._asked("abort_multipart_upload", gone, **self._key(name), UploadId=upload)

    def _asked(self, operation: str, missing: set[str], **arguments: Any) -> Any:
        """An answer; None where the error is that something is not there."""
        from botocore.exceptions import ClientError

        try:
            return getattr(self._client, operation)(**arguments)
        except ClientError as error:
            if error.response["Error"]["Code"] in missing:
                return None
            raise


@functools.lru_cache(maxsize=4)
def _client(endpoint: str | None) -> Any:
    from boto3.session import Session
    from botocore.config import Config

    # Stores that are not Amazon's need not know the checksums that botocore adds by itself.
    config = Config(
        connect_timeout=10,
        max_pool_connections=64,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 5},
    )
    return Session().client("s3", endpoint_url=endpoint, config=config)


def _md5(data: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@contextmanager
def _store_errors(place: ObjectPlace) -> Iterator[None]:
    """What boto3 raises as ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise OutputError(*_refused(place, error)) from None
    except BotoCoreError as error:
        raise OutputError(*_failed(place, error)) from None
    except ValueError as error:  # an endpoint that is none
        raise OutputError(f"{place}: {error}", "Check AWS_ENDPOINT_URL.") from None


def _refused(place: ObjectPlace, error: Any) -> Sequence[str]:
    code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    asked = f"{error.operation_name} ({code}{': ' if said else ''}{said})"
    if code == "NoSuchBucket":
        why = f"{place}: there is no bucket {place.bucket!r}"
        return why, "Make it first, or check its name and AWS_ENDPOINT_URL."
    if code in _DENIED:
        return f"{place}: access denied to these credentials: {asked}", _RIGHTS
    if code == "NoSuchUpload":
        why = f"{place}: an unfinished upload was aborted meanwhile: {asked}"
        return why, "Run the same again: what was lost is uploaded anew."
    why = f"{place}: the store refuses {asked}"
    return why, "What is uploaded stays: mend that, and the same command goes on."


def _failed(place: ObjectPlace, error: Any) -> Sequence[str]:
    from botocore import exceptions

    credentials = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
                   exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError)  # fmt: skip
    text = str(error).strip().split("\n")[0]
    if isinstance(error, credentials):
        return (
            f"{place}: no credentials ({text})",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another way that boto3 knows.",
        )
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return (
            f"{place}: the store does not answer ({text})",
            "Check AWS_ENDPOINT_URL and the network: what is uploaded stays, and the same command"
            " goes on.",
        )
    return f"{place}: {text}", "Check the AWS_ variables and the configuration of AWS."
