"""What one writes first: a proxy with FastAPI and httpx. It runs in its own environment."""

import argparse
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

TIMEOUT_S = 600.0


def proxy(worker_url: str) -> FastAPI:
    """Forwards every POST; a stream is passed on as it comes."""

    @asynccontextmanager
    async def client(app: FastAPI):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as app.state.client:
            yield

    app = FastAPI(lifespan=client)

    @app.post("/{path:path}")
    async def forward(path: str, request: Request) -> Response:
        body = await request.json()
        http: httpx.AsyncClient = request.app.state.client
        url = f"{worker_url}/{path}"
        if not body.get("stream"):
            answer = await http.post(url, json=body)
            return Response(answer.content, answer.status_code, media_type="application/json")
        sent = await http.send(http.build_request("POST", url, json=body), stream=True)
        return StreamingResponse(sent.aiter_bytes(), media_type="text/event-stream")

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--worker-url", required=True)
    args = parser.parse_args()
    uvicorn.run(proxy(args.worker_url), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
