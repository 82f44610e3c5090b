"""A stand-in for Kolena's service on loopback. It answers the client 1.69.0 and records its uploads."""

from __future__ import annotations

import io
import json
import socket
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.installed import kolena_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = "throw-away"
_JWT = "signed-by-nobody"
_LOOPBACK = {"127.0.0.1", "::1"}


@dataclass
class KolenaService:
    """The state of the service.

    Attributes:
        url: the address of the service.
        id_fields: the id fields of every dataset.
        asked: the requests in their order, as method and path.
        results: for each upload of results, the fields of the request and, as ``rows``, the decoded rows.
        inferences: for each upload of inferences, its rows.
    """

    url: str = ""
    id_fields: list[str] = field(default_factory=lambda: ["image"])
    asked: list[tuple[str, str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    inferences: list[list[dict[str, Any]]] = field(default_factory=list)
    _uploads: dict[str, list[bytes]] = field(default_factory=dict)
    _samples: str = ""
    _entities: dict[int, dict[str, Any]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """Return the answer to a request: a value for JSON, bytes, or None for 404."""
        self.asked.append((method, path))
        if path.startswith("/signed/"):
            self._uploads[path.removeprefix("/signed/")].append(body)
            return {}
        for prefix, give in (
            ("/v1/batched-load/upload/signed-url/", lambda uuid: {"signed_url": f"{self.url}/signed/{uuid}"}),
            ("/v1/batched-load/download/by-path/", lambda uuid: self._uploads[uuid][0]),
        ):
            if path.startswith(prefix):
                return give(path.removeprefix(prefix))
        answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "PUT /v1/token/login": self._login,
            "PUT /v1/event/profile": lambda _: {},
            "POST /v1/event": lambda _: {},
            "PUT /v1/batched-load/upload/init": lambda _: {"uuid": self._begin_upload()},
            "PUT /v1/batched-load/download/complete": lambda _: {},
            "PUT /v2/dataset/load-by-name": lambda asked: {
                "id": 1, "name": asked["name"], "description": "", "id_fields": self.id_fields,
            },
            "POST /v2/model/upload-results": self._take_results,
            "PUT /v1/generic/test-case/edit": self._take_samples,
            "POST /v1/generic/test-suite/edit": lambda asked: self._edited(asked["test_suite_id"], asked),
            "PUT /v1/generic/test-run/create-or-retrieve": lambda _: {"test_run_id": 1},
            "PUT /v1/generic/test-run/load-remaining-test-samples": lambda _: {"uuid": "x", "path": self._samples},
            "PUT /v1/generic/test-run/upload-inferences": self._take_inferences,
            "PUT /v1/generic/test-run/evaluate": lambda _: {},
        }  # fmt: skip
        for kind in ("model", "test-case", "test-suite"):
            answers[f"PUT /v1/generic/{kind}/load"] = lambda _: None
            answers[f"POST /v1/generic/{kind}/create"] = self._created
        return answers[f"{method} {path}"](json.loads(body or b"{}"))

    def _login(self, asked: dict[str, Any]) -> dict[str, str]:
        assert asked["api_token"] == TOKEN
        return {"tenant": "nobody", "access_token": _JWT, "token_type": "bearer"}

    def _begin_upload(self) -> str:
        uuid = f"upload-{next(self._numbers)}"
        self._uploads[uuid] = []
        return uuid

    def _created(self, asked: dict[str, Any]) -> dict[str, Any]:
        entity = {"description": "", "version": 0, "test_cases": [], **asked, "id": next(self._numbers)}
        entity |= {"tags": asked.get("tags") or [], "metadata": asked.get("metadata") or {}}
        self._entities[entity["id"]] = entity
        return entity

    def _edited(self, entity: int, asked: dict[str, Any]) -> dict[str, Any]:
        self._entities[entity] |= {
            "version": asked["current_version"] + 1,
            "test_cases": [self._entities[number] for number in asked.get("test_case_ids", [])],
        }
        return self._entities[entity]

    def _take_samples(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._samples = asked["uuid"]
        return self._edited(asked["test_case_id"], asked)

    def _take_results(self, asked: dict[str, Any]) -> dict[str, Any]:
        rows = self._rows(asked["uuid"])
        self.results.append({**asked, "rows": rows})
        return {"n_inserted": len(rows), "n_updated": 0, "model_id": 1, "eval_config_id": 1}

    def _take_inferences(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.inferences.append(self._rows(asked["uuid"]))
        return {}

    def _rows(self, uuid: str) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        rows = [row for part in self._uploads[uuid] for row in pq.read_table(io.BytesIO(part)).to_pylist()]
        return [
            {
                key: json.loads(cell, parse_constant=_refuse_constant)
                for key, cell in row.items()
                # pandas writes an index of text as another column.
                if isinstance(cell, str) and not key.startswith("__index_level_")
            }
            for row in rows
        ]


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


@contextmanager
def serve_kolena() -> Iterator[KolenaService]:
    """Run the service for the client of this process, which may connect to no other host."""
    state = kolena_client("kolena._utils.state")
    service = KolenaService()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            free = self.path.startswith("/signed/") or self.path.endswith("/token/login")
            if not free and self.headers.get("Authorization") != f"Bearer {_JWT}":
                self.send_error(401)
                return
            try:
                answer, status = service.answer(self.command, self.path, body), 200
            except ValueError as error:
                answer, status = str(error), 422
            self.send_response(404 if answer is None else status)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        do_GET = do_POST = do_PUT = _do  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None: ...

    connect, elsewhere = socket.socket.connect, []

    def connect_here(self: socket.socket, address: Any) -> None:
        if not isinstance(address, str) and address[0] not in _LOOPBACK:
            # The client ignores errors of its telemetry, so the test fails at the end.
            elsewhere.append(address)
            raise ConnectionRefusedError
        connect(self, address)

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
    ):
        # The client calls NumPy's array_split on a frame, which makes pandas warn.
        warnings.filterwarnings("ignore", "'DataFrame.swapaxes'", FutureWarning)
        service.url = f"http://127.0.0.1:{server.server_port}"
        patch.setenv("KOLENA_API_URL", service.url)
        patch.setenv("KOLENA_TOKEN", TOKEN)
        patch.setenv("NO_PROXY", "127.0.0.1")
        # The client reads the variable only at its import, and its session lasts until the process ends.
        patch.setattr(state._client_state, "base_url", service.url)
        patch.setattr(state._client_state, "jwt_token", None)
        patch.setattr(socket.socket, "connect", connect_here)
        # The client's progress bars leave a thread behind.
        patch.setattr("tqdm.tqdm.monitor_interval", 0)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="kolena")
        serving.start()
        try:
            yield service
        finally:
            server.shutdown()
            serving.join()
            state._client_state.reset()
        assert not elsewhere
