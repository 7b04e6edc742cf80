# The image of every janitor process: `docker run IMAGE worker` is `janitor worker`.

FROM python:3.11-slim-bookworm AS build
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

FROM python:3.11-slim-bookworm
# The base image's own installers are of no use to a process that runs.
RUN python -m pip uninstall --yes pip setuptools wheel \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/janitor janitor \
    && install --directory --owner janitor --group janitor --mode 0700 /var/lib/janitor
COPY --from=build /opt/janitor /opt/janitor
# The root file system may be read-only: bytecode was written at the build, state has a place of its own.
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
