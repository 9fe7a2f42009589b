# One image for every role of MemKV: operator, metadata service, node, client and hooks. Which one it
# is, the command says: `memkv node ...`, `memkv metadata ...`, `memkv-operator run ...`.
#
#   docker build -t memkv:dev .                                  # or podman, or buildah bud
#   docker buildx build --platform linux/amd64,linux/arm64 .
#
# BASE_IMAGE is Debian 12 or a later release with Python 3.11 or later. The interpreter is the
# distribution's, so that its python3-pyverbs, which matches its rdma-core, can be imported.
# Nothing names a package registry: what this machine's pip needs (an index, a certificate) is given
# as the build secrets `pip.conf` and `ca.pem`; both are optional and are in no layer.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS builder
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        gcc libc6-dev python3-dev python3-venv \
        liburing-dev libssl-dev libxxhash-dev libb2-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Dependencies first and by themselves: a change of the source keeps this layer.
COPY pyproject.toml deploy/dev/requirements-image-build.txt deploy/dev/requirements-image-run.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv /build && python3 -m venv --without-pip /opt/memkv \
    && /build/bin/pip install -q --require-hashes -r requirements-image-build.txt \
    && /build/bin/pip install -q --require-hashes -r requirements-image-run.txt \
        --prefix /opt/memkv --ignore-installed
COPY README.md LICENSE ./
COPY dataplane dataplane
COPY operator operator
COPY proto proto
# Tests import the doubles from a checkout; here they would only be one thing more to scan.
RUN PATH="/build/bin:$PATH" /build/bin/pip wheel -q --no-build-isolation --no-deps -w /wheel . \
    && /build/bin/pip install -q --no-deps --no-index --prefix /opt/memkv /wheel/*.whl \
    && rm -rf /opt/memkv/lib/python3*/site-packages/memkv*/testing \
    && sed -i '1s|^#!.*|#!/opt/memkv/bin/python3|' /opt/memkv/bin/memkv* \
    && sed -i 's/^include-system-site-packages = .*/include-system-site-packages = true/' \
        /opt/memkv/pyvenv.cfg

FROM ${BASE_IMAGE}
# rdma-core brings udev (10 MB) into the image. It is worth that: pyverbs from elsewhere does not match
# the providers' libraries, and a node without it cannot use its RDMA devices.
# Licences stay (/usr/share/doc/*/copyright), as do the lists of packages of dpkg and pip, from which
# an inventory (SBOM) is made.
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        python3 python3-pyverbs ibverbs-providers liburing2 libssl3 libb2-1 ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* /usr/share/man /usr/share/locale \
    && find /usr/share/doc -type f ! -name copyright -delete \
    && find /usr/share/doc -type d -empty -delete \
    && echo 'memkv:x:65532:65532:MemKV:/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'memkv:x:65532:' >>/etc/group
COPY --from=builder /opt/memkv /opt/memkv
ENV PATH=/opt/memkv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# What is missing at run time fails the build, not the first pod.
RUN python3 -c 'import memkv._hotpath, memkv_operator, kopf, kubernetes.aio, pyverbs.device'
ARG VERSION=0.1.0
ARG REVISION=unknown
# Where this tree is published: whoever builds the image knows.
ARG SOURCE=unknown
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="MemKV" \
    org.opencontainers.image.description="Distributed flash memory for the KV cache of LLM inference" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.base.name="${BASE_IMAGE}"
USER 65532:65532
CMD ["memkv", "--help"]
