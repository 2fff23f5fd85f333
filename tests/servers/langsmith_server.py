"""A small LangSmith ingestion server on loopback, for the real `langsmith` client.

It accepts `/info`, multipart ingestion (plain or zstd), feedback and OTLP spans, merges posts
and patches into runs and rebuilds the run tree. Every byte that arrives is kept, so that tests
can search it. Spans become runs by the attributes that LangSmith documents for OpenTelemetry.
"""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import zstandard

from tests.servers.otlp_server import Received, spans_of

__all__ = ["LangSmithServer", "Node"]


@dataclass
class Node:
    """A run with the runs below it."""

    run: dict[str, Any]
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.run["name"])

    @property
    def kind(self) -> str:
        """Its type: `chain`, `llm`, ..."""
        return str(self.run["run_type"])

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata."""
        return dict((self.run.get("extra") or {}).get("metadata") or {})

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        return list(self.run.get("tags") or [])

    def all(self) -> list[Node]:
        """Return this run and all below it."""
        return [self, *(node for child in self.children for node in child.all())]

    def named(self, name: str) -> list[Node]:
        """Return the runs of one name."""
        return [node for node in self.all() if node.name == name]

    def shape(self) -> list[Any]:
        """Return nested [type, name, children]."""
        return [self.kind, self.name, [child.shape() for child in self.children]]

    @property
    def total_tokens(self) -> int:
        """Tokens as LangSmith adds them up: a run's own usage plus that of the runs below."""
        own = (self.metadata.get("usage_metadata") or {}).get("total_tokens", 0)
        return own + sum(child.total_tokens for child in self.children)


class LangSmithServer:
    """Serves on a free port of loopback; use it in a `with` block.

    Args:
        zstd: Whether `/info` offers compressed ingestion.
        delay_s: Seconds before each answer.
        status: HTTP status of ingestion; other than 2xx is an outage.
        hold: Requests wait until it is set: a server that hangs.
    """

    def __init__(
        self,
        *,
        zstd: bool = True,
        delay_s: float = 0.0,
        status: int = 202,
        hold: threading.Event | None = None,
    ) -> None:
        self.hold = hold
        self.zstd = zstd
        self.delay_s = delay_s
        self.status = status
        self.runs: dict[str, dict[str, Any]] = {}
        self.feedback: list[dict[str, Any]] = []
        self.received: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.encodings: set[str] = set()
        self.ended: set[str] = set()
        self._patched: set[str] = set()
        self.ways: set[str] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Address for the client's `api_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        limits = {
            "use_multipart_endpoint": True,
            "size_limit": 100,
            "size_limit_bytes": 20_971_520,
            "scale_up_nthreads_limit": 4,
            "scale_up_qsize_trigger": 1000,
            "scale_down_nempty_trigger": 4,
        }
        flags = {"zstd_compression_enabled": self.zstd}
        return {"version": "0.12", "instance_flags": flags, "batch_ingest_config": limits}

    def read(self, address: str) -> Any:
        """Answer what a client reads: feedback, or what the server says of itself."""
        path, _, query = address.partition("?")
        return self.judged(parse_qs(query)) if path.endswith("/feedback") else self.info

    def judged(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return a page of the feedback on the asked runs with the asked names."""
        start, most = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["100"])[0])
        with self._lock:
            found = [
                {"trace_id": None, **one}
                for one in self.feedback
                if str(one["run_id"]) in query.get("run", [])
                and one["key"] in query.get("key", [one["key"]])
            ]
        return found[start : start + most]

    def trees(self) -> list[Node]:
        """Return the roots of all traces, children in the order of their start."""
        with self._lock:
            nodes = {key: Node(run) for key, run in self.runs.items()}
        roots = []
        for node in sorted(nodes.values(), key=lambda n: str(n.run.get("dotted_order"))):
            parent = nodes.get(str(node.run.get("parent_run_id")))
            (roots if parent is None else parent.children).append(node)
        return roots

    def tree(self) -> Node:
        """Return the only trace."""
        (root,) = self.trees()
        return root

    def filtered(self, **metadata: Any) -> list[Node]:
        """Return the runs that a metadata filter finds; values compare as LangSmith shows them."""
        nodes = [node for tree in self.trees() for node in tree.all()]
        wanted = {key: _shown(value) for key, value in metadata.items()}
        return [
            node
            for node in nodes
            if all(_shown(node.metadata.get(key)) == value for key, value in wanted.items())
        ]

    def tagged(self, tag: str) -> list[Node]:
        """Return the runs that a tag filter finds."""
        return [node for tree in self.trees() for node in tree.all() if tag in node.tags]

    def ingest_spans(self, body: bytes) -> None:
        """Take OTLP spans in as runs."""
        with self._lock:
            for span in spans_of(body):
                self.runs[span.span_id] = _run_of(span)
                self.ended.add(span.span_id)

    def searched(self) -> str:
        """Return everything that arrived, as one text."""
        return "\n".join(body.decode(errors="replace") for body in self.received)

    def ingest(self, parts: list[tuple[str, bytes]]) -> None:
        """Merge the parts of one request."""
        with self._lock:
            for name, content in parts:
                operation, run_id, *rest = name.split(".")
                if operation == "feedback":
                    self.feedback.append(json.loads(content))
                elif operation in ("post", "patch"):
                    self._merge(operation, run_id, rest[0] if rest else None, content)

    def _merge(self, operation: str, run_id: str, key: str | None, content: bytes) -> None:
        run = self.runs.setdefault(run_id, {})
        value = json.loads(content)
        if key is None:
            new = {k: v for k, v in value.items() if v is not None}
            if value.get("end_time"):
                self.ended.add(run_id)
        else:
            new = {key: value}
        if operation == "patch":
            self._patched.add(run_id)
        # the client's queue may send a run's end before its start, which knows less
        late = operation == "post" and run_id in self._patched
        self.runs[run_id] = {**new, **run} if late else {**run, **new}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _run_of(span: Received) -> dict[str, Any]:
    kept, prefix = span.attributes, "langsmith.metadata."
    metadata = {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
    total = kept.get("llm.token_count.total")
    if total is not None:
        metadata["usage_metadata"] = {"total_tokens": total}
    tags = str(kept.get("langsmith.span.tags") or "")
    return {
        "id": span.span_id,
        "parent_run_id": span.parent_id or None,
        "trace_id": span.trace_id,
        "name": span.name,
        "run_type": str(kept.get("openinference.span.kind", "chain")).lower(),
        "extra": {"metadata": metadata},
        "tags": [tag.strip() for tag in tags.split(",") if tag.strip()],
        "dotted_order": "",
    }


def _handler(server: LangSmithServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, status: int, data: Any) -> None:
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer(200, server.read(self.path))

        def do_POST(self) -> None:
            body = self._body()
            if server.hold is not None:
                server.hold.wait(60)
            if server.delay_s:
                threading.Event().wait(server.delay_s)
            server.headers.append(dict(self.headers))
            if self.headers.get("Content-Encoding") == "zstd":
                server.encodings.add("zstd")
                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            server.received.append(body)
            if server.status < 300 and self.path.endswith("/runs/multipart"):
                server.ways.add("multipart")
                server.ingest(_parts(self.headers["Content-Type"], body))
            elif server.status < 300 and self.path.endswith("/otel/v1/traces"):
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.ways.add("otlp")
                server.ingest_spans(body)
            elif server.status < 300 and self.path.endswith("/feedback"):
                server.feedback.append(json.loads(body))
            self._answer(server.status, {})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

    return Handler


def _parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    found = []
    for part in message.iter_parts():  # type: ignore[attr-defined]
        name = str(part.get_param("name", header="content-disposition"))
        found.append((name, part.get_payload(decode=True)))
    return found
