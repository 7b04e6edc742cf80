# The image of every janitor process: `docker run IMAGE worker` is `janitor worker`.

# The one place that names the base image, by its digest: a tag moves. The index of all platforms, Python 3.11.16.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
# What is installed beside the janitor: Flower's image gives constraints-flower.txt.
ARG REQUIREMENTS=constraints-run.txt
WORKDIR /src
COPY pyproject.toml constraints-run.txt constraints-flower.txt README.md LICENSE ./
COPY tasks ./tasks
COPY worker ./worker
# A venv without pip: what is copied into the final stage can install nothing.
RUN python -m venv --without-pip /opt/janitor \
    && pip --python /opt/janitor/bin/python install --no-cache-dir --require-hashes --requirement ${REQUIREMENTS} \
    && pip --python /opt/janitor/bin/python install --no-cache-dir --no-deps .

FROM ${BASE}
# The image has nothing that installs programs (ensurepip is gone, too) and no setuid or setgid file. Debian's list of
# packages stays, for scanners. The root file system may be read-only, and the base has no bytecode: it is written here.
# A tmpfs mounted on the state takes its mode but not its owner, so anyone may write there: there is one user.
RUN python -m pip uninstall --yes pip setuptools wheel \
    && rm -r /usr/local/lib/python3.*/ensurepip /usr/bin/apt* /usr/bin/dpkg* /usr/lib/apt \
    && python -m compileall -q /usr/local/lib/python3.* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/janitor janitor \
    && install --directory --owner janitor --group janitor --mode 1777 /var/lib/janitor \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /opt/janitor /opt/janitor
ENV PATH=/opt/janitor/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    JANITOR_STATE_DIR=/var/lib/janitor
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/janitor
VOLUME /var/lib/janitor
ENTRYPOINT ["janitor"]
CMD ["--help"]
# Last, since they change with each commit.
ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Finetune Janitor" \
      org.opencontainers.image.description="Deletes finetunes at the BFL API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name=${BASE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
