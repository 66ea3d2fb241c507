"""Multipart uploads that were begun and never finished. S3 lists them nowhere and charges for them until they are aborted."""

from __future__ import annotations

from typing import Any, NamedTuple

from zerogr.errors import UserError
from zerogr.store import storage


class Upload(NamedTuple):
    """A large file whose writer was killed, or is still writing."""

    name: str
    """Relative to the place that was asked for."""
    id: str
    num_bytes: int
    """Of the parts that have arrived."""


def unfinished_uploads(uri: str) -> list[Upload]:
    """Returns the unfinished uploads below a URI; none where storage is not S3.

    Raises:
        UserError: They may not be listed.
    """
    fs, path = storage.filesystem(uri)
    if "s3" not in fs.protocol:
        return []
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key}/" if key else ""
    try:
        found = _pages(
            fs, "list_multipart_uploads", "Uploads", ("KeyMarker", "UploadIdMarker"), Bucket=bucket, Prefix=prefix
        )
        return [_upload(fs, bucket, each["Key"], each["UploadId"], prefix) for each in found]
    except PermissionError as error:
        raise UserError(
            f"the unfinished uploads below '{uri}' cannot be listed ({error}); "
            "allow s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts"
        ) from error


def abort_upload(uri: str, upload: Upload) -> None:
    """Deletes what has arrived of an upload below a URI."""
    fs, path = storage.filesystem(storage.join(uri, upload.name))
    bucket, key, _ = fs.split_path(path)
    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)


def _upload(fs: Any, bucket: str, key: str, upload_id: str, prefix: str) -> Upload:
    parts = _pages(fs, "list_parts", "Parts", ("PartNumberMarker",), Bucket=bucket, Key=key, UploadId=upload_id)
    return Upload(key.removeprefix(prefix), upload_id, sum(int(part["Size"]) for part in parts))


def _pages(fs: Any, method: str, wanted: str, markers: tuple[str, ...], **options: str) -> list[dict[str, Any]]:
    """Returns the entries of all pages of a listing."""
    found: list[dict[str, Any]] = []
    while True:
        page = fs.call_s3(method, **options)
        found += page.get(wanted, [])
        if not page.get("IsTruncated"):
            return found
        options |= {marker: page[f"Next{marker}"] for marker in markers}
