"""The errors of boto3, google-api-core, gRPC, Mistral's SDK and urllib3, raised by calls to a server."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import boto3
import grpc.aio
import pytest
import requests
import urllib3
from botocore.config import Config
from mistralai.client import Mistral

from koo.ai.foreign.meaning import meaning_of
from koo.errors import Kind
from koo.policies.verdict import Fault

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warns about optional packages
    from google.api_core import exceptions as google_exceptions
    from google.api_core import grpc_helpers_async

pytestmark = pytest.mark.filterwarnings("ignore")


@contextmanager
def answering(status: int, body: bytes = b'{"message": "no"}', **headers: str) -> Iterator[str]:
    """The URL of a server that gives every request the same response."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            wait = {"retry-after": "300"} if status == 429 else {}
            for name, value in {"content-type": "application/json", **wait, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the standard library requires this name

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def raised(call: Callable[[], Any]) -> Exception:
    async def ask() -> Any:
        result = call()
        return await result if isinstance(result, Awaitable) else result

    with pytest.raises(Exception) as caught:
        asyncio.run(ask())
    return caught.value


def judged(call: Callable[[], Any]) -> Fault:
    return meaning_of(raised(call), "svc")


def boto(service: str, url: str) -> Any:
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5, proxies={})
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    return boto3.client(service, endpoint_url=url, config=config, **keys)


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (429, "ThrottlingException", Kind.THROTTLED),
        (400, "ThrottlingException", Kind.THROTTLED),
        (400, "ValidationException", Kind.INVALID_REQUEST),
        (403, "AccessDeniedException", Kind.INVALID_REQUEST),
        (403, "ExpiredTokenException", Kind.AUTH),
        (424, "ModelErrorException", Kind.SERVER_ERROR),
        (503, "ServiceUnavailableException", Kind.OVERLOADED),
    ],
)
def test_bedrock(status: int, name: str, kind: Kind) -> None:
    with answering(status, x_amzn_errortype=name) as url:
        messages = [{"role": "user", "content": [{"text": "Capital of France?"}]}]
        fault = judged(lambda: boto("bedrock-runtime", url).converse(modelId="m", messages=messages))
    assert fault.kind is kind and not fault.billed
    assert fault.retry_after_s == (300 if status == 429 else None)
    assert (fault.block is not None) is (kind is Kind.AUTH)


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (404, "NoSuchKey", Kind.NOT_FOUND),
        (403, "AccessDenied", Kind.INVALID_REQUEST),
        (503, "SlowDown", Kind.OVERLOADED),
    ],
)
def test_s3(status: int, name: str, kind: Kind) -> None:
    body = f"<Error><Code>{name}</Code><Message>no</Message></Error>".encode()
    with answering(status, body) as url:
        fault = judged(lambda: boto("s3", url).get_object(Bucket="b", Key="k"))
    assert fault.kind is kind and fault.block is None


def test_a_call_to_a_host_that_boto_cannot_reach_is_not_billed() -> None:
    fault = judged(lambda: boto("s3", "http://127.0.0.1:9").get_object(Bucket="b", Key="k"))
    assert fault.kind is Kind.CONNECTION and not fault.billed


STATUSES = [
    (429, Kind.THROTTLED), (400, Kind.INVALID_REQUEST), (401, Kind.AUTH), (403, Kind.INVALID_REQUEST),
    (500, Kind.SERVER_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_google_api_core(status: int, kind: Kind) -> None:
    with answering(status, json.dumps({"error": {"message": "no"}}).encode()) as url:
        error = google_exceptions.from_http_response(requests.get(url, timeout=5))
    fault = meaning_of(error, "svc")
    assert fault.kind is kind and fault.retry_after_s == (300 if status == 429 else None)


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_mistral(status: int, kind: Kind) -> None:
    with answering(status) as url:
        client = Mistral(api_key="k", server_url=url)
        messages: Any = [{"role": "user", "content": "Capital of France?"}]
        fault = judged(lambda: client.chat.complete_async(model="m", messages=messages))
    assert fault.kind is kind and fault.retry_after_s == (300 if status == 429 else None)


def test_the_status_on_which_urllib3_gave_up_is_used() -> None:
    with answering(429) as url, urllib3.PoolManager() as pool:
        again = urllib3.Retry(1, status_forcelist=[429], backoff_factor=0, respect_retry_after_header=False)
        assert judged(lambda: pool.request("GET", url, retries=again)).kind is Kind.THROTTLED


@pytest.mark.parametrize("wrapped", [False, True], ids=["grpc", "google-api-core"])
@pytest.mark.parametrize(
    ("name", "kind", "billed"),
    [
        ("RESOURCE_EXHAUSTED", Kind.THROTTLED, False),
        ("UNAUTHENTICATED", Kind.AUTH, False),
        ("INVALID_ARGUMENT", Kind.INVALID_REQUEST, False),
        ("PERMISSION_DENIED", Kind.INVALID_REQUEST, False),
        ("UNAVAILABLE", Kind.OVERLOADED, True),
    ],
)
def test_grpc(name: str, kind: Kind, billed: bool, wrapped: bool) -> None:
    async def abort(_: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode[name], "no")

    class Handlers(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(abort)

    async def call() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask = channel.unary_unary("/svc/ask")
                await (grpc_helpers_async.wrap_errors(ask) if wrapped else ask)(b"")
        finally:
            await server.stop(0)

    fault = judged(call)
    assert (fault.kind, fault.billed) == (kind, billed)
