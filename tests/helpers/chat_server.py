"""A server on 127.0.0.1 that speaks as much of OpenAI's chat protocol as the library uses, failures included."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """Follow a script, one action for each request, then answer normally.

    Actions: an HTTP status, "stall", "rubbish", "hollow" (no choices), "null" (no text), "blanks" and "blanks for ever"
    before the answer, "cut" and "silence" (the answer stops in the middle), "echo" (a refusal that repeats the key).
    """

    daemon_threads = True

    def __init__(self, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.finish_reason = "stop"
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.keys: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.running = self.max_running = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            action = server.script.pop(0) if server.script else "answer"
            server.keys.append(self.headers["Authorization"])
            server.requests.append(request)
            server.running += 1
            server.max_running = max(server.max_running, server.running)
        if action == "stall":
            time.sleep(1.5)
        text = "A fine sentence about " + request["messages"][0]["content"]
        bodies = {
            "rubbish": b"<html>no</html>",
            "hollow": b'{"choices": []}',
            "null": b'{"choices": [{"message": {}}]}',
            "echo": json.dumps({"error": {"message": f"Incorrect {self.headers['Authorization']}"}}).encode(),
        }
        body = bodies.get(action) or json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
             "choices": [{"index": 0, "finish_reason": server.finish_reason,
                          "message": {"role": "assistant", "content": text}}]}
        ).encode()  # fmt: skip
        time.sleep(0.02)
        with server.lock:
            server.running -= 1
        blanks = {"blanks": 3, "blanks for ever": 60}.get(action, 0)
        try:
            self.send_response(int(action) if action.isdigit() else 401 if action == "echo" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) + blanks + (action == "cut")))
            self.end_headers()
            for _ in range(blanks):  # as servers do that keep a connection open while they think
                self.wfile.write(b"\n")
                time.sleep(0.05)
            self.wfile.write(body[:20] if action == "silence" else body)
            time.sleep(1.0 if action == "silence" else 0.0)
        except OSError:
            pass  # a client that has given up
