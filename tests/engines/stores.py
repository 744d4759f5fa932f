"""Object stores on this machine: each started empty, with what the environment must say so that the clients find it.

S3 is MinIO: the real clients of both sides (boto3 for the corpus, obstore and Delta for the cache) against one server.

GCS has no emulator that answers all of its clients. Beam's client speaks GCS's JSON interface: fake-gcs-server answers
it, and holds the corpus. obstore and Delta speak its XML interface: fake-gcs-server refuses their PUT ("invalid
uploadType"). That interface is S3's but for names of headers, so MinIO, with a bucket open to all, answers
it and holds the cache: URLs, reads, ranged reads, lists, writes and deletes are those of the real GCS client. What
MinIO does not know is the header `x-goog-if-generation-match: 0`, which makes a put exclusive on GCS: the law that of
two runs one commits is tried on S3 and on a local disk, and not on GCS.
"""

import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import boto3

from tests.engines.servers import Server, answers, engine, free_port

KEY, SECRET, REGION = "teachonce", "teachonce-secret", "us-east-1"
BUCKET = "teachonce"
"""Letters alone: obstore writes a hyphen as %2D, and MinIO's policies compare names before they decode them."""

_OPEN_TO_ALL = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:*"]}
_OPEN_TO_ALL["Resource"] = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


class Store(NamedTuple):
    """A bucket for a corpus and a cache, on servers of ours."""

    root: str
    env: Mapping[str, str]
    upload: Callable[[str, bytes], None]
    """Puts an object of the corpus."""
    servers: tuple[Server, ...]


def start_s3(folder: Path) -> Store:
    """Corpus and cache on MinIO."""
    server, client, url = _start_minio(folder)
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}

    def upload(name: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=name, Body=data)

    return Store(f"s3://{BUCKET}", {**env, "AWS_ENDPOINT_URL": url}, upload, (server,))


def start_gs(folder: Path) -> Store:
    """The corpus on fake-gcs-server, the cache behind GCS's other interface."""
    xml, client, base = _start_minio(folder)
    policy = {"Version": "2012-10-17", "Statement": [_OPEN_TO_ALL]}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    port = free_port()
    url = f"http://localhost:{port}"
    command = [engine("bin/fake-gcs-server"), "-scheme=http", "-host=localhost", f"-port={port}"]
    server = Server("fake-gcs", [*command, "-backend=memory", f"-public-host=localhost:{port}"], folder)
    _ready(server, f"{url}/storage/v1/b")
    _post(f"{url}/storage/v1/b?project=none", json.dumps({"name": BUCKET}).encode(), "application/json")
    account = folder / "account.json"
    nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
    account.write_text(json.dumps({"gcs_base_url": base, "disable_oauth": True, **nobody}))
    env = {"GOOGLE_SERVICE_ACCOUNT": str(account), "GOOGLE_BASE_URL": base}
    env |= {"STORAGE_EMULATOR_HOST": url, "NO_GCE_CHECK": "true"}

    def upload(name: str, data: bytes) -> None:
        quoted = urllib.request.quote(name, safe="")
        _post(f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quoted}", data, "text/plain")

    return Store(f"gs://{BUCKET}", env, upload, (server, xml))


def _start_minio(folder: Path) -> tuple[Server, object, str]:
    """MinIO with one bucket, a client of it, and its address."""
    port = free_port()
    (folder / "data").mkdir(parents=True)
    command = [engine("bin/minio"), "server", folder / "data", "--quiet"]
    command += ["--address", f"localhost:{port}", "--console-address", f"localhost:{free_port()}"]
    server = Server("minio", command, folder, {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET})
    url = f"http://localhost:{port}"
    _ready(server, f"{url}/minio/health/ready")
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket=BUCKET)
    return server, client, url


def _ready(server: Server, url: str) -> None:
    try:
        server.wait_until(lambda: answers(url))
    except BaseException:
        server.stop()
        raise


def _post(url: str, data: bytes, kind: str) -> None:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200, url
