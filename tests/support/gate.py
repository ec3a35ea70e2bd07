"""A registry that can be taken away: a door before the real one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx


class Gate:
    """url: to be used instead of the registry's. While it is closed everything is answered 503."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = threading.Event()
        self.refused: list[str] = []  # paths that were asked for while it was closed


@contextmanager
def gate(registry: str) -> Iterator[Gate]:
    """A gate before a registry, open."""
    parts = urlsplit(registry)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if made.closed.is_set():
                made.refused.append(self.path)
                status, text = 503, b""
            else:
                there = f"{parts.scheme}://{parts.netloc}{self.path}"
                kind = {"Content-Type": self.headers.get("Content-Type") or ""}
                said = real.request(self.command, there, content=body, headers=kind)
                status, text = said.status_code, said.content
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer  # noqa: N815  # the names are http.server's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Gate(f"http://127.0.0.1:{server.server_port}{parts.path}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    with httpx.Client(timeout=20) as real:
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
