# Any Debian-like image with python3 (3.11 or newer) and its venv module will do, the same for both stages.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/fedquorum
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY fl_protocol ./fl_protocol
COPY client_sdk ./client_sdk
COPY aggregator_service ./aggregator_service
COPY migrations ./migrations
RUN /opt/fedquorum/bin/pip install --constraint constraints.txt ".[server,postgres,objects]"

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="FedQuorum" \
      org.opencontainers.image.description="A federated-learning aggregation server over plain HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 fedquorum \
    && useradd --system --uid 10001 --gid fedquorum --home-dir /data --no-create-home --shell /usr/sbin/nologin fedquorum \
    && install --directory --owner fedquorum --group fedquorum --mode 0700 /data
COPY --from=builder /opt/fedquorum /opt/fedquorum
ENV PATH=/opt/fedquorum/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FEDQUORUM_HOST=0.0.0.0 \
    FEDQUORUM_PORT=8080 \
    FEDQUORUM_DATABASE_URL=sqlite:////data/fedquorum.db
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# A container is published through something that adds TLS; see the README on proxies.
ENV FEDQUORUM_BEHIND_PROXY=true
# Alive, not ready: a restart does not bring back a database that is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['FEDQUORUM_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["fedquorum"]
CMD ["serve"]
