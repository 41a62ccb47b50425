"""Servers on loopback that give what a test puts there."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

Answer = bytes | Callable[[http.server.BaseHTTPRequestHandler], object]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.pages.get(self.path)
        if answer is None:
            self.send_error(404)
        elif callable(answer):
            with contextlib.suppress(OSError):  # the reader may have seen enough
                answer(self)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    """`pages`: path -> bytes, or a function of the handler; `asked`: the paths of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def served(kind: Callable[[], Any] = Server) -> Iterator[Any]:
    """A server of a kind, which runs meanwhile."""
    with kind() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
