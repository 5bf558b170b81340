"""A stand-in for the face swap service: its two routes, the address from HOST and PORT, one line for each request."""

import json
import os
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {"status": "healthy"}) if self.path == "/health" else self.answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/process" or not {"source_url", "target_url"} <= set(given):
            self.answer(400, {"status": "failed", "error": "source_url and target_url are required"})
            return
        size, model = given.get("resolution", "1024x1024"), given.get("model", "inswapper_128_fp16")
        self.answer(200, {
            "status": "success", "output_path": "/workspace/data/facefusion/output/out.jpg", "processing_time": 0.01,
            "job_id": uuid.uuid4().hex, "metadata": {"resolution": size, "model": model, "pid": os.getpid()},
        })  # fmt: skip

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    print("handler starts", flush=True)
    ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
