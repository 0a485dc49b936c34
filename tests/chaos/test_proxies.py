"""What the suite does to connections really happens to them."""

import http.server
import threading
import time

import httpx
import pytest

from tests.chaos.proxies import Mode, Switchboard


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(204)
            self.end_headers()

        do_GET = do_PUT = _answer

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running.server_port
    running.shutdown()
    running.server_close()


@pytest.fixture
def proxy(server):
    with Switchboard() as board:
        yield board.add("one", server)


@pytest.fixture
def client(proxy):
    with httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", timeout=1) as connection:
        yield connection


def test_an_open_proxy_is_not_there(client):
    assert client.put("/", content=b"x" * 200_000).status_code == 204


def test_a_cut_resets_old_and_new_connections_until_it_heals(proxy, client):
    client.get("/")
    proxy.set(Mode.CUT)
    with pytest.raises(httpx.TransportError):
        client.get("/")
    proxy.set(Mode.OPEN)
    assert client.get("/").status_code == 204


def test_what_a_silent_proxy_was_given_arrives_once_it_speaks_again(proxy, client):
    proxy.set(Mode.SILENT)
    threading.Timer(0.4, proxy.set, [Mode.OPEN]).start()
    began = time.monotonic()
    assert client.get("/").status_code == 204
    assert time.monotonic() - began > 0.3


def test_a_full_store_refuses_writes_and_still_reads(proxy, client):
    client.get("/")
    proxy.set(Mode.FULL)
    assert client.put("/", content=b"x" * 200_000).status_code == 507
    assert client.get("/").status_code == 204
    assert client.put("/", content=b"").status_code == 507


def test_a_slow_proxy_takes_its_time(proxy, client):
    proxy.set(Mode.SLOW, delay_s=0.2)
    began = time.monotonic()
    assert client.get("/").status_code == 204
    assert time.monotonic() - began > 0.35
