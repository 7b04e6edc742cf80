"""The client over real sockets: a call ends in time, in one error, and is not sent later once it is given up."""

import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
import trustme

from tasks.api import errors
from tasks.api.client import BflClient, Timeouts
from tasks.api.transport import BODY_LIMIT
from worker.sandbox.api import Sandbox

KEY = "5ecret-key-of-the-account"
TIMEOUTS = Timeouts(timedelta(seconds=0.5), timedelta(seconds=0.5), timedelta(seconds=1))
CONFIRMED = {"status": "ok", "message": "gone", "deleted_finetune_id": "mine", "timestamp": "2026-03-01"}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(keys={KEY}, latency_seconds=0) as sandbox:
        yield sandbox


@pytest.fixture
def api(sandbox):
    sandbox.heal()
    sandbox.create("mine")
    return sandbox


@pytest.fixture
def client(api):
    return BflClient(api.url, KEY, TIMEOUTS)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


class Server:
    """A port that does to each connection what the test says, and remembers how each one ended."""

    def __init__(self, serve, authority=None):
        self.serve = serve
        self.context = None
        if authority:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(self.context)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if authority else ''}://127.0.0.1:{self.listening.getsockname()[1]}"
        self.got_request = threading.Event()
        self.ended: list[str] = []
        self.all_ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                raw, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(raw,), daemon=True).start()

    def _run(self, raw):
        with raw:
            try:
                connection = self.context.wrap_socket(raw, server_side=True) if self.context else raw
                with connection:
                    with suppress(OSError):
                        self.serve(self, connection)
                    # Not by reading: TLS answers a plain end itself, and so causes a reset.
                    ending = select.poll()
                    ending.register(connection, select.POLLRDHUP)
                    events = ending.poll(10_000)
                    self.ended.append("reset" if events and events[0][1] & select.POLLERR else "closed")
            except OSError as error:
                self.ended.append(type(error).__name__)
        self.all_ended.set()

    def read_request(self, connection):
        received = b""
        while b"\r\n\r\n" not in received or (received.startswith(b"POST") and not received.endswith(b"}")):
            more = connection.recv(65536)
            if not more:
                return False
            received += more
        self.got_request.set()
        return True


@contextmanager
def serving(serve, authority=None):
    server = Server(serve, authority)
    try:
        yield server
    finally:
        server.listening.close()


def answer(body=CONFIRMED, status="200 OK", **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(raw)}",
        *(f"{name}: {it}" for name, it in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def hang(server, connection):
    server.read_request(connection)


def drip(start, each):
    def serve(server, connection):
        server.read_request(connection)
        connection.sendall(start)
        while True:
            connection.sendall(each)
            time.sleep(0.05)

    return serve


def client_of(server, bundle=None, timeouts=TIMEOUTS):
    return BflClient(server.url, KEY, timeouts, ca_bundle=bundle if server.context else None)


# The calls, against the simulated API.


def test_the_three_calls(api, client):
    assert client.my_finetunes().has("mine")
    details = client.finetune_details("mine")
    assert details.fields["trigger_word"] == "TOK"
    assert abs(details.date.timestamp() - time.time()) < 60
    assert client.delete_finetune("mine").status == "Success"
    assert client.my_finetunes().names == frozenset()


def test_ids_are_sent_as_they_are(api, client):
    odd = "a&b=c?d#e%20/ü+"
    api.create(odd)
    assert client.finetune_details(odd).fields["finetune_comment"].startswith(odd)
    client.delete_finetune(odd)
    assert odd not in api.finetunes()


DETAIL = {"detail": [{"loc": ["body", "finetune_id"], "msg": "is too short", "type": "value_error"}]}
ANSWERS: list[tuple[str, dict[str, Any], type[errors.ApiError], str]] = [
    ("status", {"status": 422, "body": DETAIL}, errors.Refused, "HTTP 422: body.finetune_id: is too short"),
    ("status", {"status": 404, "body": {"detail": "unknown"}}, errors.NotFound, "HTTP 404: unknown"),
    ("status", {"status": 401}, errors.KeyRefused, "HTTP 401"),
    ("status", {"status": 408}, errors.TryAgain, "HTTP 408"),
    ("status", {"status": 429, "headers": {"Retry-After": "7"}}, errors.Throttled, "HTTP 429"),
    ("status", {"status": 503}, errors.Unclear, "HTTP 503"),
    ("status", {"status": 302, "headers": {"Location": "/elsewhere"}}, errors.Refused, "HTTP 302"),
    ("status", {"status": 302, "headers": {"Location": "http://[bad"}}, errors.Refused, "HTTP 302"),
    ("status", {"status": 204, "body": {"status": "ok"}}, errors.Unclear, "HTTP 204"),
    ("status", {"status": 103}, errors.Unclear, "HTTP 103"),
    ("not_json", {}, errors.Unclear, "not JSON"),
    ("missing_fields", {}, errors.Unclear, "not a complete confirmation"),
    ("wrong_id", {}, errors.WrongFinetune, "asked to delete 'mine', the API says it deleted 'somebody-elses'"),
    ("huge", {}, errors.Unclear, f"larger than {BODY_LIMIT} bytes"),
    ("cut", {}, errors.Unclear, "the connection broke"),
    ("reset", {}, errors.Unclear, "the connection broke"),
    ("close", {}, errors.Unclear, "the connection broke"),
    ("hang", {}, errors.Unclear, "no complete answer in time: 127.0.0.1"),
]


@pytest.mark.parametrize(("kind", "more", "error", "words"), ANSWERS)
def test_each_answer_is_one_error_without_the_key(api, client, kind, more, error, words):
    api.fault(kind, **more)
    with pytest.raises(error) as raised:
        client.delete_finetune("mine")
    assert type(raised.value) is error
    assert words in str(raised.value)
    assert str(raised.value).isprintable()
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(vars(raised.value))
    assert KEY not in told
    assert raised.value.__context__ is None, "the original error would carry the request, and so the key"


def test_the_client_works_on_after_every_fault(api, client):
    for kind, more, *_ in ANSWERS:
        api.fault(kind, applies=False, **more)
        with pytest.raises(errors.ApiError):
            client.delete_finetune("mine")
        assert client.my_finetunes().has("mine"), f"the answer after {kind} {more} is its own"
    assert client.delete_finetune("mine").http_status == 200


def test_proxies_and_netrc_of_the_environment_are_not_used(api, client, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.my_finetunes().has("mine")


def test_each_thread_has_its_own_connection_and_deadline(api):
    api.fault("hang", call="finetune_details")
    # Twenty calls beside it need more time than one does, on a machine that is busy.
    client = BflClient(api.url, KEY, Timeouts(*[timedelta(seconds=4)] * 3))
    with ThreadPoolExecutor(4) as pool:
        slow = pool.submit(client.finetune_details, "mine")
        lists = [pool.submit(client.my_finetunes) for _ in range(20)]
        assert all(future.result().has("mine") for future in lists)
        assert type(slow.exception()) is errors.Unclear


def test_a_thread_keeps_its_connection_but_no_cookies():
    connections: list[Any] = []

    def serve(server, connection):
        connections.append(connection)
        for _ in range(3):
            received = connection.recv(65536)
            assert b"ookie" not in received
            connection.sendall(answer({"finetunes": []}, **{"Set-Cookie": "a=b"}))

    with serving(serve) as server:
        client = client_of(server)
        assert [client.my_finetunes().count for _ in range(3)] == [0, 0, 0]
    assert len(connections) == 1


# 1xx (what broke: answers shifted by one on kept connections).


@pytest.mark.parametrize("early", ["103 Early Hints", "102 Processing", "199 Unheard Of"])
def test_an_answer_after_an_early_one_is_never_taken_for_the_next(early):
    late = threading.Event()

    def serve(server, connection):
        while server.read_request(connection):
            connection.sendall(f"HTTP/1.1 {early}\r\nLink: </x>\r\n\r\n".encode())
            late.wait(0.2)
            connection.sendall(answer({"finetunes": ["of the first"]}))

    with serving(serve) as server:
        client = client_of(server)
        for _ in range(2):
            with pytest.raises(errors.Unclear, match=f"HTTP {early[:3]}"):
                client.my_finetunes()
            late.set()


def test_a_100_is_read_over():
    def serve(server, connection):
        server.read_request(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + answer())

    with serving(serve) as server:
        assert client_of(server).delete_finetune("mine").status == "ok"


# Bounds.


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("start", "each"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1"),
    ],
)
def test_a_server_that_drips_cannot_stretch_the_deadline(tls, start, each, authority, bundle):
    with serving(drip(start, each), authority if tls else None) as server:
        began = time.monotonic()
        with pytest.raises(errors.Unclear):
            client_of(server, bundle).delete_finetune("mine")
        assert time.monotonic() - began < 2
        assert server.all_ended.wait(5), "the connection is not kept"


def test_a_handshake_that_drips_ends_in_time_and_nothing_was_sent(bundle):
    def serve(server, connection):
        connection.sendall(b"\x16\x03\x03\x40\x00")
        while True:
            connection.sendall(b"\x02")
            time.sleep(0.05)

    with serving(serve) as server:
        client = BflClient(server.url.replace("http:", "https:"), KEY, TIMEOUTS, ca_bundle=bundle)
        began = time.monotonic()
        with pytest.raises(errors.NotSent):
            client.delete_finetune("mine")
        assert time.monotonic() - began < 2


def test_all_addresses_of_a_host_share_one_deadline(monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        # A full queue of connections: the kernel drops what comes then.
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(address)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)] * 20
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        client = BflClient("http://many.example", KEY, TIMEOUTS)
        began = time.monotonic()
        with pytest.raises(errors.NotSent, match=r"within the connect timeout: many\.example"):
            client.delete_finetune("mine")
        assert 0.9 < time.monotonic() - began < 2
        for one in waiting:
            one.close()


def test_a_second_address_is_tried_if_the_first_refuses(api, client, monkeypatch):
    resolved = socket.getaddrinfo("127.0.0.1", int(api.url.rpartition(":")[2]), type=socket.SOCK_STREAM)
    refusing = (*resolved[0][:4], ("127.0.0.1", 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [refusing, *resolved])
    assert client.my_finetunes().has("mine")


@pytest.mark.parametrize(
    "body",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 302 No\r\nLocation: /x\r\nContent-Length: 9999999\r\n\r\n",
    ],
)
def test_a_body_over_the_limit_is_not_read_on(body):
    sent = []

    def serve(server, connection):
        server.read_request(connection)
        connection.sendall(body)
        while True:
            sent.append(connection.send(b" " * 65536))

    with serving(serve) as server:
        client = client_of(server)
        with pytest.raises(errors.Unclear, match=f"larger than {BODY_LIMIT} bytes"):
            client.delete_finetune("mine")
        assert server.all_ended.wait(5), "the connection is not kept"
        assert sum(sent) < 16 * BODY_LIMIT, "only what fits in the buffers of the kernel besides"


@pytest.mark.parametrize(("length", "padding", "is_whole"), [(0, 0, True), (5, 0, False), (0, BODY_LIMIT, False)])
def test_a_body_is_taken_only_if_it_is_whole(length, padding, is_whole):
    body = json.dumps(CONFIRMED).encode() + b" " * padding

    def serve(server, connection):
        server.read_request(connection)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + length}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)

    with serving(serve) as server:
        if is_whole:
            assert client_of(server).delete_finetune("mine").status == "ok"
        else:
            with pytest.raises(errors.Unclear):
                client_of(server).delete_finetune("mine")


# Given up means gone (what broke: the kernel sent a request long after the call was given up).


@pytest.mark.parametrize("tls", [False, True])
def test_a_call_that_is_given_up_is_reset(tls, authority, bundle):
    with serving(hang, authority if tls else None) as server:
        with pytest.raises(errors.Unclear, match="in time"):
            client_of(server, bundle).delete_finetune("mine")
        assert server.all_ended.wait(5)
        assert server.ended == ["reset"]


_CALLING = """
import sys
from datetime import timedelta
from pathlib import Path
from tasks.api.client import BflClient, Timeouts
url, bundle = sys.argv[1:]
long = timedelta(seconds=60)
BflClient(url, "a-key", Timeouts(long, long, long), ca_bundle=Path(bundle)).delete_finetune("mine")
"""


@pytest.mark.parametrize("tls", [False, True])
def test_a_call_of_a_killed_process_is_reset(tls, authority, bundle):
    with serving(hang, authority if tls else None) as server:
        process = subprocess.Popen([sys.executable, "-c", _CALLING, server.url, str(bundle)])
        try:
            assert server.got_request.wait(20)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert server.all_ended.wait(5)
        assert server.ended == ["reset"]


@pytest.mark.parametrize("tls", [False, True])
def test_each_connection_is_told_to_reset_and_to_stop_retransmitting(tls, authority, bundle, monkeypatch):
    seen = []
    real = socket.socket.setsockopt

    def noting(self, *option):
        seen.append(option)
        return real(self, *option)

    monkeypatch.setattr(socket.socket, "setsockopt", noting)
    with serving(
        lambda server, it: (server.read_request(it), it.sendall(answer())), authority if tls else None
    ) as to:
        client_of(to, bundle).delete_finetune("mine")
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000) in seen
    assert (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0") in seen


# Connections that do not come about.


def test_nobody_listening_means_not_sent():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        client = BflClient(f"http://127.0.0.1:{port}", KEY, TIMEOUTS, url_variable="BFL_API_URL_EU")
        with pytest.raises(errors.NotSent) as raised:
            client.delete_finetune("mine")
    told = f"the connection was refused or not possible: 127.0.0.1:{port} (set BFL_API_URL_EU to use another host)"
    assert str(raised.value) == told


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_an_unknown_host_means_not_sent(host, monkeypatch):
    def resolve(name, *_, **__):
        name.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(errors.NotSent, match="not resolved"):
        BflClient(f"http://{host}", KEY, TIMEOUTS).delete_finetune("mine")


def test_a_server_without_tls_means_not_sent(api, bundle):
    client = BflClient(api.url.replace("http:", "https:"), KEY, TIMEOUTS, ca_bundle=bundle)
    with pytest.raises(errors.NotSent, match="TLS failed"):
        client.delete_finetune("mine")
    assert api.finetunes() == ["mine"]


def test_a_certificate_is_checked_against_the_bundle_and_the_host(authority, bundle):
    def serve(server, connection):
        server.read_request(connection)
        connection.sendall(answer())

    with serving(serve, authority) as server:
        assert client_of(server, bundle).delete_finetune("mine").status == "ok"
        with pytest.raises(errors.NotSent, match="the certificate is not trusted"):
            BflClient(server.url, KEY, TIMEOUTS).delete_finetune("mine")
        elsewhere = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(errors.NotSent, match="the certificate is not trusted"):
            BflClient(elsewhere, KEY, TIMEOUTS, ca_bundle=bundle).delete_finetune("mine")
