"""A server on 127.0.0.1 with the part of the Hub's protocol that the library uses. It can also fail on purpose.

It does not implement Xet, the Hub's transfer of large files; large files take the same requests as small ones.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ROUTE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree|preupload|commit)/([^/?]+)")
_REFUSALS = {401: "GatedRepo", 403: "GatedRepo", 404: "EntryNotFound"}


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: name to commit to path to content. ``fault`` selects how requests fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.main: dict[str, str] = {}
        self.fault: str | int | None = None
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Commit files on ``main`` and return the id of the commit."""
        tree = {**self.commits.get(repo, {}).get(self.main.get(repo, ""), {}), **files}
        oid = hashlib.sha1(repr((self.main.get(repo), sorted(tree.items()))).encode()).hexdigest()
        self.commits.setdefault(repo, {})[oid] = tree
        self.main[repo] = oid
        return oid


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, fault = self.server, self.server.fault
        server.requests.append(f"{self.command} {self.path}")
        if isinstance(fault, int):
            return self.answer(fault, b"{}", X_Error_Code=_REFUSALS.get(fault, "Unavailable"))
        if fault == "echo":
            return self.answer(
                400, b"{}", X_Error_Message=f"No such {self.headers.get('Authorization')} at {self.path}"
            )
        if fault == "slow":
            time.sleep(0.4)
        if match := _API.match(self.path):
            repo, revision = match[2], server.main.get(match[2], "") if match[4] == "main" else match[4]
            tree = server.commits.get(repo, {}).get(revision)
            if tree is None:
                return self.answer(
                    404, b"{}", X_Error_Code="RevisionNotFound" if repo in server.main else "RepoNotFound"
                )
            if match[3] == "tree":
                return self.answer_json(
                    [
                        {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                        for p, c in tree.items()
                    ]
                )
            return self.answer_json({"id": repo, "sha": revision, "siblings": [{"rfilename": path} for path in tree]})
        match = _ROUTE.match(self.path)
        if match is None:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        repo, revision = match[2], server.main.get(match[2], "") if match[3] == "main" else match[3]
        if repo not in server.main:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if revision not in server.commits[repo]:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        content = server.commits[repo][revision].get(match[4])
        if content is None:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        etag = hashlib.sha1(content).hexdigest()
        size = len(content)
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "truncate" and self.command == "GET":
            content, self.close_connection = content[: size // 2], True
        return self.answer(
            200, content, Content_Length=str(size), ETag=f'"{etag}"', X_Repo_Commit=revision, Accept_Ranges="bytes"
        )

    def do_POST(self) -> None:
        server = self.server
        server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if isinstance(server.fault, int):
            return self.answer(server.fault, b"{}")
        if self.path == "/api/repos/create":
            named = json.loads(body)
            kind = "datasets/" if named.get("type") == "dataset" else ""
            return self.answer_json({"url": f"{server.url}/{kind}{named.get('organization')}/{named['name']}"})
        match = _API.match(self.path)
        if match is None:
            return self.answer_json({"errors": [], "warnings": []})
        if match[3] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer_json(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        oid = server.commit(match[2], files)
        return self.answer_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{server.url}/{match[2]}/commit/{oid}", "hookOutput": ""}
        )
