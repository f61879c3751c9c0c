# The router with SGLang's parsers, without SGLang's engine: no torch, no CUDA, no GPU.
#
#     docker build --tag slime-router .
#     docker run --rm --publish 127.0.0.1:30000:30000 slime-router \
#         --hf-checkpoint Qwen/Qwen3-8B --worker-urls http://worker:30000
#
# Settings also come as SLIME_ROUTER_* variables, keys as files: SLIME_ROUTER_API_KEY_FILE.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY slime_router ./slime_router
RUN python -m venv /opt/slime-router \
    && /opt/slime-router/bin/pip install --no-cache-dir --disable-pip-version-check ".[fast,parquet,redis]" \
    && PIP_NO_CACHE_DIR=1 /opt/slime-router/bin/slime-router install-parsers \
    && find /opt/slime-router -name __pycache__ -prune -exec rm -r {} +

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="slime_router" \
      org.opencontainers.image.description="A token-exact gateway to SGLang workers" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/slime-router slime-router
COPY --from=build /opt/slime-router /opt/slime-router
ENV PATH=/opt/slime-router/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/slime-router/huggingface \
    SLIME_ROUTER_HOST=0.0.0.0 \
    SLIME_ROUTER_PORT=30000
USER 10001:10001
WORKDIR /var/lib/slime-router
EXPOSE 30000
STOPSIGNAL SIGTERM
# For plain HTTP on this port; with a certificate, or another port, give a health check of your own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:30000/liveness', timeout=4)"]
ENTRYPOINT ["slime-router"]
