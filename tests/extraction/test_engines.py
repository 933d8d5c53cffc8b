"""The contract of all engines, held by those that need no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from reki_ray.config import ExtractConfig, OpenAiEngine, ScriptedEngine
from reki_ray.extraction.engines import build_engine
from reki_ray.prompts.output_format import Form
from tests.contracts import engine_contract as contract
from tests.contracts.engine_contract import CONTRACT, FACTORS, Asked, Candidate
from tests.support.openai_server import KEY, MODEL, Server, completion, status

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

FAILING = "title: Cursed film"
BROKEN = "title: Film that is asked for twice"


def text_of(form: Form) -> str:
    texts = {factor: f"something {factor} and calm" for factor in FACTORS}
    if form == "json":
        return json.dumps(texts)
    return "\n".join(f"{factor}: {text}" for factor, text in texts.items())


def scripted(form: Form) -> Candidate:
    template = contract.template(form)
    config = ExtractConfig(engine=ScriptedEngine(fail_containing="Cursed"))
    return Candidate(build_engine(config, template), template, FAILING)


def remote(form: Form, server: Server) -> Candidate:
    server.script("Cursed", status(400, "we do not like it"))
    server.script("asked for twice", completion("genre calm, mood calm"))
    template = contract.template(form)
    engine = OpenAiEngine(base_url=server.url, model=MODEL, api_key_variable="TESTS_KEY")
    config = ExtractConfig(engine=engine, max_replicas=2)
    broken = BROKEN if form == "json" else None
    return Candidate(build_engine(config, template), template, FAILING, broken)


@pytest.fixture(
    scope="module",
    params=[(kind, form) for kind in ("scripted", "openai") for form in ("text", "json")],
    ids="-".join,
)
def asked(request: pytest.FixtureRequest, ray_local: None) -> Iterator[Asked]:
    del ray_local
    kind, form = request.param
    with pytest.MonkeyPatch.context() as patch, Server(lambda _: text_of(form)) as server:
        patch.setenv("TESTS_KEY", KEY)
        candidate = scripted(form) if kind == "scripted" else remote(form, server)
        yield contract.asked(candidate)


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_every_engine_keeps_the_contract(asked: Asked, promise: Callable[[Asked], None]) -> None:
    promise(asked)
