"""A finished workspace as the report reads it, without any work done."""

from __future__ import annotations

from typing import Any

from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.evaluation.comparison import METRICS


def arm(name: str, auc: float | None, cold: float | None, backbone: str = "din") -> dict[str, Any]:
    """Entry of an arm; without an AUC nothing of it is defined."""
    delta = None if auc is None else auc - 0.7
    bounds = None if delta is None else [delta - 0.01, delta + 0.01]
    cold_delta = None if cold is None else cold - 0.6
    piece = {
        "samples": 1_234,
        "auc": cold,
        "delta_auc": cold_delta,
        "delta_ci": None if cold_delta is None else [cold_delta - 0.02, cold_delta + 0.02],
    }
    slices = ("all", "cold_items", "warm_items", "cold_users", "sparse_users", "new_users")
    return {
        "arm": name,
        "backbone": backbone,
        "seeds": [0, 1],
        "auc": auc,
        "auc_ci": None if auc is None else [auc - 0.01, auc + 0.01],
        "logloss": None if auc is None else 0.6,
        "gauc": None if auc is None else 0.65,
        "calibration": {
            "error": None if auc is None else 0.0123,
            "ratio": None if auc is None else 1.0456,
            "bins": []
            if auc is None
            else [
                {"samples": 5, "predicted": 0.2, "observed": 0.25},
                {"samples": 4, "predicted": 0.7, "observed": 0.75},
            ],
        },
        "delta_auc": delta,
        "delta_ci": bounds,
        "ci_over": ["users", "items", "seeds"],
        "slices": dict.fromkeys(slices, piece),
    }


def control(name: str, low: float, high: float, backbone: str = "din") -> dict[str, Any]:
    """Entry of reki_c against one of its controls."""
    middle = (low + high) / 2
    return {
        "backbone": backbone,
        "arm": "reki_c",
        "control": name,
        "delta_auc": middle,
        "delta_ci": [low, high],
        "ci_over": ["users", "items", "seeds"],
        "apart": not low <= 0 <= high,
        "slices": {},
    }


def reranked(name: str, arm: str | None, delta: float | None) -> dict[str, Any]:
    """Entry of a reranker over an arm, or of the initial order."""
    bounds = None if delta is None else [delta - 0.01, delta + 0.01]
    by_cutoff = dict.fromkeys(("1", "3", "5", "7", "10"), 0.4321)
    return {
        "reranker": name,
        "arm": arm,
        "seeds": [0, 1],
        "lists": 77,
        "ndcg": by_cutoff,
        "map": by_cutoff,
        "ndcg_7_ci": [0.42, 0.44],
        "map_7_ci": [0.42, 0.44],
        "delta_ndcg_7": delta,
        "delta_ci": bounds,
        "delta_initial_ndcg_7": delta,
        "delta_initial_ci": bounds,
        "delta_map_7": delta,
        "delta_map_7_ci": bounds,
        "ci_over": ["users", "items", "seeds"],
        "per_seed": [],
    }


def add_rerankers(workspace: Workspace) -> None:
    """Add what the evaluation writes where rerankers are trained."""
    content = workspace.read_json(METRICS)
    content["reranking"] = [
        reranked("initial_order", None, None),
        reranked("prm", "fair_base", 0.0),
        reranked("prm", "reki_c", 0.0321),
    ]
    entry = control("title_text", 0.01, 0.02)
    entry["delta_ndcg_7"] = entry.pop("delta_auc")
    entry["reranker"] = "prm"
    del entry["backbone"]
    content["reranking_controls"] = [entry]
    workspace.write_json(METRICS, content)


def fill(
    workspace: Workspace,
    arms: list[dict[str, Any]] | None = None,
    controls: list[dict[str, Any]] | None = None,
) -> None:
    """Record all stages but the report, with small figures.

    Args:
        workspace: Gets the manifest and the metrics.
        arms: Entries of the evaluation; a base, the fair base and reki_c by default.
        controls: Entries of the evaluation; reki_c against two controls by default.
    """
    details: dict[str, dict[str, Any]] = {
        "ingest": {
            "dataset": {
                "name": "run",
                "users": 4,
                "items": 1_682,
                "interactions": 20,
                "samples": {"train": 8, "valid": 1, "test": 1},
            }
        },
        "cluster": {"users": {"clusters": 2, "size_list": [3, 1]}, "items": {"size_list": [5]}},
        "extract": {
            "engine": "scripted",
            "model": "scripted",
            "mode": "collective",
            "prompts": 154,
            "prompt_tokens": 1_234_567,
            "generated_tokens": 18_000,
            "tokens_per_second": 241.37,
            "cache_hits": 0,
            "dead": 3,
            "answers": {
                "answered": 151,
                "complete": 148,
                "empty_factors": {"genre": 3},
                "flaws": {"loop": 2, "copy": 1},
                "asked_again": {"cut": 5},
                "quarantined": {"refusal": 3},
            },
        },
        "train": {"samples_per_second": 12_345.0},
        "publish": {"version": 1, "arm": "reki_c"},
        "evaluate": {},
        "serve": {
            "candidates": 5,
            "requests": 200,
            "p50_ms": 3.0,
            "p99_ms": 9.0,
            "requests_per_second": 812.4,
            "latencies_ms": [1.0, 2.0, 9.0],
            "example": {
                "request": {"user_id": "1", "candidates": ["7", "8", "9", "6", "5"]},
                "response": {"scores": [{"item_id": i, "score": 0.5} for i in "78965"]},
            },
        },
    }
    for name, figures in details.items():
        workspace.record(name, StageEntry("f", seconds=1.0, details=figures))
    if arms is None:
        arms = [arm("base", 0.69, None), arm("fair_base", 0.7, 0.6), arm("reki_c", 0.7, 0.61)]
    if controls is None:
        controls = [control("title_text", 0.01, 0.02), control("reki_c_shuffled", -0.01, 0.01)]
    workspace.write_json(METRICS, {"arms": arms, "controls": controls})
