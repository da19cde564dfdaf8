"""A server of Google Cloud Storage's XML protocol on loopback, as far as obstore speaks it: objects with generations,
conditions, listings in pages, and uploads in parts.

No emulator in a registry takes uploads of that protocol (fake-gcs-server and gcp-storage-emulator have the JSON one).
It knows one bucket, and one service account, whose signature every request must have.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

BUCKET = "models"
ACCOUNT = "tester@project.iam.gserviceaccount.com"
_PAGE = 3  # objects and folders of a listing; Google has 1,000
_DATE = "Sun, 01 Nov 2026 00:00:00 GMT"


@dataclass
class GoogleStorage:
    objects: dict[str, bytes] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)  # of uploads that are not complete

    def tag(self, key: str) -> str:
        return f'"{md5(self.objects[key], usedforsecurity=False).hexdigest()}"'

    def put(self, key: str, content: bytes) -> None:
        """Gives an object of this content a new generation."""
        self.objects[key] = content
        self.generations[key] = self.generations.get(key, 0) + 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: GoogleStorage
    key: rsa.RSAPublicKey
    lock: threading.Lock
    stopped: threading.Event

    def _handle(self) -> None:
        if self.stopped.is_set():  # a client has kept the connection
            self.close_connection = True
            return None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        _, bucket, *rest = address.path.split("/", 2)
        key, query = unquote(rest[0]) if rest else "", parse_qs(address.query, keep_blank_values=True)
        try:
            claims = jwt.decode(
                self.headers.get("Authorization", "").removeprefix("Bearer "),
                self.key,
                algorithms=["RS256"],
                options={"verify_aud": False},
            )
        except jwt.InvalidTokenError:
            return self._refuse(401, "AuthenticationRequired")
        if claims["iss"] != ACCOUNT:
            return self._refuse(403, "AccessDenied")
        if bucket != BUCKET:
            return self._refuse(404, "NoSuchBucket")
        with self.lock:
            if self.command == "GET" and not key:
                return self._list(query)
            if self.command in ("GET", "HEAD"):
                return self._get(key)
            if self.command == "POST" or "uploadId" in query:
                return self._upload_parts(key, query, body)
            if self.command == "DELETE":
                return self._delete(key)
            return self._put(key, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - as http.server calls them

    def _get(self, key: str) -> None:
        if key not in self.storage.objects:
            return self._refuse(404, "NoSuchKey")
        if self.headers.get("If-Match") not in (None, self.storage.tag(key)):
            return self._refuse(412, "PreconditionFailed")
        return self._send(200, self.storage.objects[key], key)

    def _put(self, key: str, body: bytes) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != self.storage.generations.get(key, 0):
            return self._refuse(412, "PreconditionFailed")
        self.storage.put(key, body)
        return self._send(200, b"", key)

    def _delete(self, key: str) -> None:
        if key not in self.storage.objects:
            return self._refuse(404, "NoSuchKey")
        del self.storage.objects[key], self.storage.generations[key]
        return self._send(204, b"")

    def _upload_parts(self, key: str, query: dict[str, list[str]], body: bytes) -> None:
        parts = self.storage.parts
        if "uploads" in query:
            upload = f"upload{len(parts)}"
            parts[upload] = {}
            name = "InitiateMultipartUploadResult"
            return self._send(200, f"<{name}><UploadId>{upload}</UploadId></{name}>".encode())
        upload = query["uploadId"][0]
        if upload not in parts:
            return self._refuse(404, "NoSuchUpload")
        if self.command == "PUT":
            parts[upload][int(query["partNumber"][0])] = body
            return self._send(200, b"", tag=f'"{md5(body, usedforsecurity=False).hexdigest()}"')
        told = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        if told != sorted(parts[upload]):
            return self._refuse(400, "InvalidPart")
        sent = parts.pop(upload)
        self.storage.put(key, b"".join(sent[number] for number in told))
        name = "CompleteMultipartUploadResult"
        return self._send(200, f"<{name}><ETag>{escape(self.storage.tag(key))}</ETag></{name}>".encode(), key)

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", [""])[0]
        entries = {}  # what a page holds, by the key or folder that is last in it
        for key in sorted(self.storage.objects):
            if not key.startswith(prefix):
                continue
            folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                name = f"{prefix}{folder}{delimiter}"
                entries[name] = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
                continue
            entries[key] = (
                f"<Contents><Key>{escape(key)}</Key><Generation>{self.storage.generations[key]}</Generation>"
                f"<LastModified>2026-11-01T00:00:00.000Z</LastModified><ETag>{escape(self.storage.tag(key))}</ETag>"
                f"<Size>{len(self.storage.objects[key])}</Size></Contents>"
            )
        names = [name for name in sorted(entries) if name > after]
        page = names[:_PAGE]
        more = len(names) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = "".join(entries[name] for name in page)
        body = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{text}</ListBucketResult>"
        self._send(200, body.encode())

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _send(self, status: int, body: bytes, key: str = "", tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if key or tag:
            self.send_header("ETag", tag or self.storage.tag(key))
        if key:
            self.send_header("Last-Modified", _DATE)
            self.send_header("x-goog-generation", str(self.storage.generations[key]))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def google_storage(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of the clients of one that runs; `folder` gets the key file of the account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path = folder / "account.json"
    account = {"type": "service_account", "client_email": ACCOUNT, "private_key": pem, "private_key_id": "1"}
    path.write_text(json.dumps(account))
    stopped = threading.Event()
    state = {"storage": GoogleStorage(), "key": key.public_key(), "lock": threading.Lock(), "stopped": stopped}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), state))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield {"GOOGLE_BASE_URL": url, "GOOGLE_APPLICATION_CREDENTIALS": str(path)}
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
