"""What the online graph is measured against: empty deployments, and one plain process."""

from __future__ import annotations

import sys
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    """The body of a score request, as far as the benchmark sends it."""

    user_id: str
    candidates: list[str]


class Score(BaseModel):
    """One candidate's score."""

    item_id: str
    score: float
    source: str


class Answer(BaseModel):
    """An answer of the same length."""

    scores: list[Score]


def build_floor() -> Any:
    """A gateway that asks two empty deployments, one after the other, as the graph does."""
    from ray import serve  # the monolith does without Ray

    app = FastAPI()

    class Empty:
        async def call(self) -> None:
            """Nothing."""

    @serve.ingress(app)
    class EmptyGateway:
        def __init__(self, lookup: Any, scorer: Any) -> None:
            self._parts = (lookup, scorer)

        @app.post("/v1/score")
        async def score(self) -> dict[str, bool]:
            for part in self._parts:
                await part.call.remote()
            return {"done": True}

    def part(kind: type) -> Any:
        return serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})(kind)

    empty = part(Empty)
    ingress = part(EmptyGateway)
    return ingress.bind(empty.options(name="Lookup").bind(), empty.options(name="Scorer").bind())


def build_monolith(publish_root: str) -> FastAPI:
    """Store and model in one FastAPI application, written as one would without this project."""
    import torch  # the floor does without a model

    from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
    from reki_ray.store.versions import VersionStore

    torch.set_num_threads(1)
    version = VersionStore(publish_root).open()
    scorer = version.load_scorer()
    app = FastAPI()

    @app.post("/v1/score")
    async def score(request: Request) -> Answer:
        profile = version.profile(request.user_id)
        assert profile is not None
        assert version.users is not None
        assert version.items is not None
        events = zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True)
        vectors, _ = version.users.lookup([request.user_id])
        user = UserInput(profile.attributes, [HistoryEvent(*event) for event in events], vectors[0])
        scores = scorer.score(user, request.candidates)
        sources = version.items.sources(request.candidates)
        found = zip(request.candidates, scores.tolist(), sources, strict=True)
        return Answer(
            scores=[Score(item_id=i, score=score, source=source) for i, score, source in found]
        )

    return app


def main() -> None:
    """Serve the monolith: publication folder, port."""
    import uvicorn

    root, port = sys.argv[1:]
    uvicorn.run(build_monolith(root), host="127.0.0.1", port=int(port), access_log=False)


if __name__ == "__main__":
    main()
