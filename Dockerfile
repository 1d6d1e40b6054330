# syntax=docker/dockerfile:1

# Stage 1: a virtual environment from the hashed lock, then the project's own wheel without resolving anything.
FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-deps --require-hashes -r requirements/build.txt \
 && python -m venv --without-pip /opt/knhk \
 && python -m pip --python /opt/knhk/bin/python install --no-deps --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY knhk_workflow knhk_workflow
COPY knhk_sidecar knhk_sidecar
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m pip --python /opt/knhk/bin/python install --no-deps --no-index /wheels/*.whl \
 && python -m pip --python /opt/knhk/bin/python check \
 && /opt/knhk/bin/python -m compileall -q /opt/knhk/lib

# Stage 2: the interpreter, that environment, and nobody's home directory.
FROM python:3.12-slim
LABEL org.opencontainers.image.title="knhk-sidecar" \
      org.opencontainers.image.licenses="Apache-2.0"
# The numeric id lets Kubernetes verify runAsNonRoot; the data directory is this user's alone.
RUN groupadd --gid 65532 knhk \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin knhk \
 && install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/knhk
COPY --from=build /opt/knhk /opt/knhk
ENV PATH=/opt/knhk/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KGC_SIDECAR_WORKFLOW_DB_PATH=/var/lib/knhk/workflow_db
USER 65532:65532
WORKDIR /var/lib/knhk
VOLUME /var/lib/knhk
# gRPC, REST with health, metrics
EXPOSE 50051 8080 9090
# SIGTERM drains: health turns NOT_SERVING, calls in flight end, the journal is flushed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["knhk"]
CMD ["serve"]
