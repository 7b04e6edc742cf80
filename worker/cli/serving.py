"""Commands that answer over HTTP: serve, metrics."""

from __future__ import annotations

import click

from worker.cli.common import extra
from worker.logs import configure as configure_logs
from worker.settings import load_settings

host_option = click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")


@click.command()
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free one.")
@click.option("--new-token", metavar="NAME", help="Print a new token and its table for the file, and end.")
def serve(*, host: str, port: int, new_token: str | None) -> int:
    """Run the HTTP service, for clients with a token in JANITOR_TOKENS_FILE.

    It speaks plain HTTP: if other machines use it, put a proxy that does TLS in front of it. It needs no API key.

    \b
    janitor serve --new-token billing
    JANITOR_TOKENS_FILE=tokens.toml janitor serve --port 8080
    """
    with extra():
        from worker.http import server, tokens  # noqa: PLC0415 -- brings in FastAPI

    if new_token is not None:
        return _show_new(*tokens.new_token(new_token))
    settings = load_settings()
    known = tokens.read_tokens(settings.tokens_file)
    configure_logs(settings.log_level)
    with server.listen(host, port) as listening:
        click.echo(f"listening on {_url(host, listening.getsockname()[1])}")
        server.serve(settings, known, listening)
    return 0


@click.command()
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0 picks a free one.")
def metrics(*, host: str, port: int) -> int:
    """Serve Prometheus metrics, and nothing else, without a token.

    They are computed from Redis at each scrape: one such process is enough for any number of workers.

    \b
    janitor metrics --port 9464
    """
    with extra():
        from worker.http import server  # noqa: PLC0415 -- brings in uvicorn

    settings = load_settings()
    configure_logs(settings.log_level)
    with server.listen(host, port) as listening:
        click.echo(f"listening on {_url(host, listening.getsockname()[1])}/metrics")
        server.serve_metrics(settings, listening)
    return 0


def _show_new(secret: str, table: str) -> int:
    click.echo("the token, shown this once:", err=True)
    click.echo(secret)
    click.echo("\nadd this to the file JANITOR_TOKENS_FILE, with the scopes and accounts you want:\n", err=True)
    click.echo(table, err=True)
    return 0


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
