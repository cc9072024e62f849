"""Something served over HTTP in this process, at an address of its own."""

import json
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Serve = Callable[[Any], str]


def start(serving: Any) -> ThreadingHTTPServer:
    """Serve what `serving.answer(path, body)` gives: an object, a text, (status, what is wrong), or None for 404."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            answered = serving.answer(self.path, body)
            status = 200 if answered else 404
            if isinstance(answered, tuple):
                status, said = answered
                answered = {"error": {"message": said}}
            content = json.dumps(answered or {"error": {"message": "there is no such thing"}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def is_healthy(url: str) -> bool:
    """Tell whether a server answers already."""
    try:
        with urllib.request.urlopen(f"{url}/health"):
            return True
    except OSError:
        return False
