# The kit with all packages that its lock files pin. `make image` builds it; see docs/howto/run-on-a-cluster.md.
#
# BASE_IMAGE    the base, with the libraries of a GPU's driver interface; torch brings its own CUDA.
#               `make base-image` checks whether its tag still has this digest
# SNAPSHOT      the day of the Ubuntu or Debian archive that packages come from (default: see
#               container/install.sh); empty: the package sources of the base
# ACCELERATOR   the build of torch: cuda or cpu
# COMMIT        the commit of the kit, for records and labels; ends in -dirty if files were changed
# LOCK          the digest of the lock files, as in records
#
# To use other package indexes, pass a pip.conf as the secret `pipconf`, and the certificates that it names as
# /run/ca.crt as the secret `ca`. They leave no trace in the image.
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143

FROM ${BASE_IMAGE} AS packages
ARG SNAPSHOT
COPY container/install.sh /kit/container/
RUN /kit/container/install.sh system python3-venv
ARG ACCELERATOR=cuda
COPY lockfiles /kit/lockfiles
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.crt \
    /kit/container/install.sh packages
COPY . /kit
ARG COMMIT=
ARG BASE_IMAGE
RUN /kit/container/install.sh kit

FROM ${BASE_IMAGE}
ARG SNAPSHOT
COPY container/install.sh /kit/container/
RUN /kit/container/install.sh system
COPY --from=packages /opt/kit /opt/kit
COPY --from=packages /kit /kit
RUN /kit/container/install.sh mounts

ARG VERSION=
ARG COMMIT=
ARG LOCK=
LABEL org.opencontainers.image.title="qlora-repeat" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      qlora-repeat.lock="${LOCK}"
ENV PATH=/opt/kit/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /kit
USER 1000:1000
VOLUME ["/kit/runs", "/cache"]
ENTRYPOINT ["/kit/container/start.sh"]
