"""Options of the server from environment variables, as containers set them."""

from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner

from fluxtalk.runtime.server.cli import serve


def parsed(arguments: list[str], **environment: str) -> click.Context:
    """The context of `fluxtalk serve` with these words and variables, before anything runs."""
    runner = CliRunner(env=environment)
    with runner.isolation(env=environment):
        return serve.make_context("serve", arguments)


def test_what_is_typed_wins_over_a_variable_and_that_over_the_default() -> None:
    assert parsed(["bundle"]).params["port"] == 8000
    assert parsed(["bundle"], FLUXTALK_PORT="81").params["port"] == 81
    assert parsed(["bundle", "--port", "82"], FLUXTALK_PORT="81").params["port"] == 82


def test_every_option_and_the_bundle_have_a_variable() -> None:
    found = parsed(
        [], FLUXTALK_BUNDLE="/b", FLUXTALK_INDEX="/one:/two", FLUXTALK_ALLOW_HOST="a.org b.org", FLUXTALK_DEDICATED="1"
    ).params
    assert found["bundle"] == Path("/b")
    assert found["indexes"] == (Path("/one"), Path("/two"))
    assert found["allow_host"] == ("a.org", "b.org")
    assert found["dedicated"] is True
    shown = CliRunner().invoke(serve, ["--help"]).output
    for parameter in serve.params:
        if isinstance(parameter, click.Option) and parameter.expose_value:
            assert str(parameter.envvar) in shown, parameter.opts


def test_a_wrong_variable_is_named() -> None:
    done = CliRunner().invoke(serve, ["bundle"], env={"FLUXTALK_PORT": "many"})
    assert done.exit_code == 2
    assert "FLUXTALK_PORT" in done.output
