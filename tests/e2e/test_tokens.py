"""`condu token`: a token is shown once, listed without its secret, and revoked by its name."""

from __future__ import annotations

from serving.tokens.registry import read_tokens, token_keys
from serving.tokens.token import Token
from tests.e2e.project import Project


def test_the_command_makes_lists_and_revokes(bare: Project) -> None:
    made = bare.condu_here("token", "create", "condu.yaml", "app", "--scope", "predict", "--expires", "90d")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    (record,) = [found for found in read_tokens(bare.store) if isinstance(found, Token)]
    assert record.matches(token)
    assert token not in made.stderr
    listed = bare.condu_here("token", "list", bare.store_url)
    assert "app" in listed.stdout
    assert token.rpartition("_")[2] not in listed.stdout
    assert record.hash not in bare.condu_here("token", "list", "condu.yaml", "--json").stdout
    for wrong, says in (
        (("create", "condu.yaml", "app", "--scope", "predict"), "already"),
        (("create", "condu.yaml", "b", "--scope", "all"), "predict or admin"),
        (("create", "condu.yaml", "b", "--scope", "admin", "--expires", "soon"), "90d, 12h or 30m"),
        (("revoke", "condu.yaml", "b"), "has no token"),
    ):
        done = bare.condu_here("token", *wrong)
        assert done.returncode == 2
        assert says in " ".join(done.stderr.split())
    assert bare.condu_here("token", "revoke", "condu.yaml", "app").returncode == 0
    assert token_keys(bare.store) == []


def test_a_service_that_a_network_reaches_does_not_start_without_a_token(project: Project) -> None:
    project.write_config(serve={"host": "0.0.0.0"})
    done = project.condu_here("serve", "condu.yaml")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "has no valid one. `condu token create CONFIG NAME --scope predict` makes one; `serve.auth: none`" in said
