"""One kept-alive connection to the daemon: a request out, JSON or a stream back. Never repeats a request."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from comfyd.client.transport import ApiError, Target, decode, dropped, open_first, talking

ANSWER_MARGIN_S = 15.0
"""How much longer than `wait` an answer may take before the call gives up."""

Body = Mapping[str, Any] | bytes | None


class Exchange:
    """targets: places to try; after the first answer only the one that took the connection."""

    def __init__(self, targets: tuple[Target, ...], token: str | None, timeout: float) -> None:
        self.targets = targets
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None
        self._headers = {"Accept": "application/json", "User-Agent": "comfyd-client"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> Any:
        """The JSON of the answer. wait: seconds that the daemon itself may take before it answers."""
        if self._connection is None or dropped(self._connection):
            self.close()
            self._connection = self._open()
        self._connection.sock.settimeout(max(self._timeout, wait + ANSWER_MARGIN_S))
        target, path = self.targets[0], path + _query(query)
        try:
            with talking(target, method, path):
                self._request(self._connection, method, path, body, headers)
                return decode(self._connection.getresponse(), target)
        except ApiError:
            raise
        except BaseException:
            self.close()
            raise

    @contextmanager
    def stream(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer of any length on a connection of its own. silence_s: longest pause, None = for ever."""
        connection = self._open()
        target, path = self.targets[0], path + _query(query)
        sock = connection.sock
        try:
            with talking(target, "GET", path):
                self._request(connection, "GET", path, None, {**(headers or {}), "Connection": "close"})
                response = connection.getresponse()
                if response.status != 200:
                    decode(response, target)
            sock.settimeout(silence_s)
            yield response
        finally:
            connection.close()

    def _open(self) -> http.client.HTTPConnection:
        target, connection = open_first(self.targets, self._timeout)
        self.targets = (target,)
        return connection

    def _request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str] | None,
    ) -> None:
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        connection.request(method, self.targets[0].prefix + path, data, sent)


def _query(query: Mapping[str, Any] | None) -> str:
    given = {k: v for k, v in (query or {}).items() if v is not None}
    return f"?{urlencode(given)}" if given else ""
