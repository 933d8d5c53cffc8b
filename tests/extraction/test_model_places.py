"""Where a model lies is found out on the node that loads it, not on the driver's."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import EncodeConfig
from reki_ray.core import downloads
from reki_ray.core.downloads import model_here, model_reference
from reki_ray.encoding.encoders import protocol
from reki_ray.errors import EngineError
from reki_ray.extraction.engines.vllm_observer import observing
from reki_ray.llm import chat_template
from reki_ray.llm.chat_template import ChatRenderer

PACKAGED = "packaged:smollm2-135m-instruct"


@pytest.fixture
def another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node on which packaged models lie elsewhere."""
    for module in (downloads, protocol):
        monkeypatch.setattr(
            module, "resolve_model", lambda name, **_: f"here/{name.partition(':')[2]}"
        )


class Stage:
    """Ray Data's stage, as far as its subclass uses it."""

    def __init__(self, *, model: str, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.llm = type("Wrapper", (), {"engine": object()})()


@pytest.mark.usefixtures("another_node")
def test_the_engine_s_actor_takes_the_model_of_its_own_node() -> None:
    stage: Any = observing(Stage, None, None, model=PACKAGED)  # type: ignore[arg-type]
    made = stage(model="/driver/.cache/smollm2", batch_size=3)
    assert (made.model, made.batch_size) == ("here/smollm2-135m-instruct", 3)


def test_a_renderer_travels_with_the_name_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    loaded: list[str] = []

    def load(source: str, **_: object) -> object:
        loaded.append(source)
        return object()

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    for node in ("driver", "worker"):
        monkeypatch.setattr(chat_template, "model_here", lambda name, node=node: f"{node}/{name}")
        if node == "driver":
            travelling = pickle.dumps(ChatRenderer(PACKAGED, "main"))
        else:
            pickle.loads(travelling)
    assert loaded == [f"driver/{PACKAGED}", f"worker/{PACKAGED}"]


@pytest.mark.usefixtures("another_node")
def test_an_encoder_takes_the_model_of_its_own_node() -> None:
    path, revision = protocol.source_of(EncodeConfig(model="packaged:all-minilm-l6-v2"))
    assert path == "here/all-minilm-l6-v2"
    assert set(revision) == {"revision"}


def test_a_local_folder_must_be_on_every_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    reference = model_reference("model")
    assert reference == model_here(reference) == str(tmp_path / "model")
    (tmp_path / "model").rmdir()
    with pytest.raises(EngineError, match=socket.gethostname()) as caught:
        model_here(reference)
    assert caught.value.where == reference
    assert "at the same path" in caught.value.todo
    for name in (PACKAGED, "org/model"):
        assert model_reference(name) == name
