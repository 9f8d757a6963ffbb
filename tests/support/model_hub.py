"""A model hub on the loopback, and the files of a checkpoint: for tests of what is fetched and found."""

import hashlib
import json
import random
import re
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from voxcli.hub.cache import Hub

COMMIT = "a" * 40
REPO = "someone/Voxtral-Tiny"


def safetensors(size: int, seed: int = 0) -> bytes:
    """Return a valid file of one tensor of random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def checkpoint_files(shards: int = 2, size: int = 3000) -> dict[str, bytes]:
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    return {
        "config.json": b'{"model_type": "voxtral"}',
        "generation_config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "tekken.json": b'{"vocab": []}' * 50,
        "model.safetensors.index.json": json.dumps({"weight_map": {name: name for name in names}}).encode(),
        **{name: safetensors(size, seed) for seed, name in enumerate(names)},
        "consolidated.safetensors": b"twice",
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"raise SystemExit",
        "README.md": b"# hello",
    }


@dataclass
class FakeHub:
    """As much of the hub's API as fetching needs, on the loopback; it can refuse, break off and lie."""

    files: dict[str, bytes]
    refuse: tuple[int, str] | None = None  # status and X-Error-Code of every request
    refuse_files: tuple[int, str] | None = None  # of files alone: a gated model's page is public
    refuse_bytes: tuple[int, str] | None = None  # of what large files hold: the rest is served
    stall: bool = False  # hold a connection that breaks open instead of closing it
    break_after: dict[str, list[int]] = field(default_factory=dict)  # for each GET, how many bytes it gets
    corrupt: bool = False
    log: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    release: threading.Event = field(default_factory=threading.Event)

    def info(self) -> bytes:
        siblings = [{"rfilename": name, "size": len(data), **self.lfs(name)} for name, data in self.files.items()]
        card = {"license": "apache-2.0"}
        return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": card}).encode()

    def tree(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": n, "size": len(d), "oid": self.etag(n), **self.lfs(n)}
                for n, d in self.files.items()
            ]
        ).encode()

    def is_large(self, name: str) -> bool:
        return name.endswith(("safetensors", "tekken.json", "onnx", "gguf", "model.bin"))

    def lfs(self, name: str) -> dict[str, object]:
        if not self.is_large(name):
            return {}
        lfs = {"sha256": self.etag(name), "oid": self.etag(name), "size": len(self.files[name]), "pointerSize": 130}
        return {"lfs": lfs}

    def etag(self, name: str) -> str:
        sum_of = hashlib.sha256 if self.is_large(name) else hashlib.sha1
        return sum_of(self.files[name]).hexdigest()

    def ranges(self, name: str) -> list[str]:
        return [asked for method, path, asked in self.log if method == "GET" and path.endswith(name)]

    def serve(self) -> ThreadingHTTPServer:
        fake = self

        class Serve(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                fake.log.append((self.command, path, self.headers.get("Range", "")))
                refused = fake.refuse or (fake.refuse_files if "/resolve/" in path else None)
                if body and fake.is_large(path):
                    refused = refused or fake.refuse_bytes
                if refused:
                    self.reply(refused[0], b"no", {"X-Error-Code": refused[1]} if refused[1] else {}, body=body)
                elif "/tree/" in path:
                    self.reply(200, fake.tree(), {"Content-Type": "application/json"}, body=body)
                elif path.startswith("/api/models/"):
                    self.reply(200, fake.info(), {"Content-Type": "application/json"}, body=body)
                else:
                    self.send_file(path.rsplit("/", 1)[1], body=body)

            def send_file(self, name: str, *, body: bool) -> None:
                data = fake.files[name]
                start = int(re.sub(r"\D", "", self.headers.get("Range", "0").split("-")[0]) or 0)
                headers = {"ETag": f'"{fake.etag(name)}"', "X-Repo-Commit": COMMIT}
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                sent = data[start:]
                if fake.corrupt and fake.is_large(name):
                    sent = sent[:-1] + bytes([sent[-1] ^ 1])
                cuts = fake.break_after.get(name, []) if body else []
                self.reply(206 if start else 200, sent, headers, body=body, cut=cuts.pop(0) if cuts else None)

            def reply(
                self, status: int, data: bytes, headers: dict[str, str], *, body: bool, cut: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(data[:cut])
                if cut is not None:
                    self.close_connection = True
                    if fake.stall:
                        fake.release.wait(30)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


def whole_folder(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, data in (files or checkpoint_files()).items():
        (folder / name).write_bytes(data)
    return folder


def cached(hub: Hub, repo_id: str, files: dict[str, bytes] | None = None) -> Path:
    refs = hub.repo(repo_id) / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    return whole_folder(hub.repo(repo_id) / "snapshots" / COMMIT, files)
