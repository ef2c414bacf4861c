"""A small Hugging Face Hub on loopback: one repository, as much of its HTTP interface as a download needs."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class HubServer:
    """Serves `files` (contents by name) as the branch main of a repository, whose commit is `commit`.

    Attributes:
        requests: (method, path) of everything asked for, in order.
        url: where it is, for HF_ENDPOINT.
    """

    def __init__(self, repository, commit, files):
        self.requests, hub = [], self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(self.command)

            do_HEAD = do_GET

            def answer(self, method):
                path = unquote(urlparse(self.path).path)
                hub.requests.append((method, path))
                api, tree = f"/api/models/{repository}/revision/", f"/api/models/{repository}/tree/{commit}"
                name = path.removeprefix(f"/{repository}/resolve/{commit}/")
                if path in (f"{api}main", f"{api}{commit}"):
                    record = {"id": repository, "sha": commit, "siblings": [{"rfilename": each} for each in files]}
                    self.send(json.dumps(record).encode())
                elif path == tree:
                    self.send(json.dumps([self.described(each) for each in files]).encode())
                elif name in files:
                    self.send(files[name], {"X-Repo-Commit": commit, "ETag": f'"{self.described(name)["oid"]}"'})
                else:
                    code = "RevisionNotFound" if path.startswith(api) else "RepoNotFound"
                    self.send(b"", {"X-Error-Code": code}, 404)

            def described(self, name):
                oid = hashlib.sha1(files[name]).hexdigest()
                return {"type": "file", "path": name, "size": len(files[name]), "oid": oid}

            def send(self, content, headers=(), status=200):
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fetched(self):
        """The names of the files that were read, once for each time."""
        return sorted(
            path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path
        )
