"""`condu token`: who may use a service that asks for tokens. The tokens are in the store that it serves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.options import JsonOption, WhereArgument, address_of, duration
from cluster.output import console, errors, print_json, table
from fusion.store import Store
from serving.tokens.registry import add_token, read_tokens, remove_token
from serving.tokens.token import SCOPES, Token, new_token

app = typer.Typer(
    no_args_is_help=True, help="Who may use a service: make, list and revoke tokens. Replicas see it within seconds."
)

NameArgument = Annotated[str, typer.Argument(help="What the token is called.", metavar="NAME")]


@app.command()
def create(
    where: WhereArgument,
    name: NameArgument,
    scope: Annotated[str, typer.Option(help="What it may do: `predict`, or `admin`, which may also publish.")],
    expires: Annotated[str | None, typer.Option(help="Such as 90d, 12h or 30m. Default: never.")] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(help="Limit of each replica. Default: `serve.limits`.")
    ] = None,
    images_per_s: Annotated[float | None, typer.Option(help="Limit of each replica. Default: `serve.limits`.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it. It is shown this once: the store keeps a hash."""
    until = None if expires is None else duration(expires, "--expires")
    token, record = new_token(name, scope, lifetime=until, requests_per_s=requests_per_s, images_per_s=images_per_s)
    add_token(_store(where), record)
    if as_json:
        print_json({"token": token, **_told(record)})
        return
    print(token)
    errors.print(
        f"{name}: {scope}, {'until ' + record.expires if record.expires else 'without an end'}. It is not shown again. "
        "Give it to the client as $CONDU_TOKEN, or send it as `Authorization: Bearer TOKEN`",
        markup=False,
    )


@app.command("list")
def list_tokens(where: WhereArgument, as_json: JsonOption = False) -> None:
    """All tokens, without their secrets."""
    store = _store(where)
    found = read_tokens(store)
    tokens = [token for token in found if isinstance(token, Token)]
    for damaged in found:
        if not isinstance(damaged, Token):
            errors.print(f"warning: {damaged}", markup=False, soft_wrap=True)
    if as_json:
        print_json([_told(token) for token in tokens])
        return
    rows = [
        (t.name, t.scope, t.created, f"{t.expires} (expired)" if t.is_expired() else t.expires, t.requests_per_s,
         t.images_per_s)
        for t in tokens
    ]  # fmt: skip
    console.print(table(store.url, ["token", "scope", "created", "expires", "requests/s", "images/s"], rows))


@app.command()
def revoke(where: WhereArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Delete a token: replicas refuse it as soon as they look (`serve.poll_s`)."""
    remove_token(_store(where), name)
    if as_json:
        print_json({"revoked": name})
    else:
        console.print(f"{name} is revoked", markup=False)


def _store(where: str) -> Store:
    return address_of(where).open()


def _told(token: Token) -> dict[str, object]:
    return {
        **{key: value for key, value in asdict(token).items() if key not in ("salt", "hash")},
        "may": sorted(SCOPES[token.scope]),
        "expired": token.is_expired(),
    }
