"""The report of a run: arms, rerankers, throughput."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from reki_ray.core.formats import counted, interval, milliseconds, number
from reki_ray.core.workspace import REPORT_HTML, Workspace
from reki_ray.evaluation.report import diverged, drawn, scored_example, verdict
from reki_ray.evaluation.report_tables import against_baseline


def report_text(content: dict[str, Any], workspace: Workspace) -> Group:
    """Sum up report.json: one scored request, all arms, throughput."""
    serving, extraction = content["serving"], content["extraction"]
    throughput = Text(
        f"LLM {number(extraction['tokens_per_second'])} generated tokens/s"
        f" · training {number(content['training']['samples_per_second'])} samples/s"
        f" · score {milliseconds(serving['p50_ms'])} p50, {milliseconds(serving['p99_ms'])} p99"
        f" for {serving['candidates']} candidates"
    )
    example = Syntax(scored_example(content), "bash", background_color="default", word_wrap=True)
    return Group(
        Text("\nOne scored request, as the service answered it"),
        example,
        Text(),
        arm_tables(content, content["config"]["evaluate"]["confidence"]),
        throughput,
        Text(f"Report: {workspace.location}/{REPORT_HTML}"),
    )


def arm_tables(content: dict[str, Any], confidence: float) -> Group:
    """Show the arms of report.json or `METRICS`, one table per backbone, then the rerankers."""
    arms = content["arms"]
    backbones = dict.fromkeys(arm["backbone"] for arm in arms)
    return Group(
        *[
            _arm_table([arm for arm in arms if arm["backbone"] == backbone], confidence)
            for backbone in backbones
        ],
        *map(Text, diverged(arms)),
        *[Text(verdict(entry)) for entry in content["controls"]],
        *_reranking(content, confidence),
    )


def _arm_table(arms: list[dict[str, Any]], confidence: float) -> Table:
    seeds = counted(max(len(arm["seeds"]) for arm in arms), "seed")
    table = Table(
        title=f"Test split, {arms[0]['backbone']}, mean of {seeds}, "
        f"{confidence:.0%} intervals {drawn(arms)}",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("AUC", "against fair_base", "LogLoss", "GAUC", "cold items", "cold users"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in arms:
        table.add_row(
            arm["arm"],
            interval(arm["auc"], arm["auc_ci"]),
            against_baseline(arm, arm),
            interval(arm["logloss"], None),
            interval(arm["gauc"], None),
            interval(arm["slices"]["cold_items"]["auc"], None),
            interval(arm["slices"]["cold_users"]["auc"], None),
        )
    return table


def _reranking(content: dict[str, Any], confidence: float) -> list[Table | Text]:
    """Rerankers beside the initial order, and their controls; nothing without rerankers."""
    rows = content.get("reranking")
    if not rows:
        return []
    table = Table(
        title=f"{counted(rows[0]['lists'], 'list')} of the test split, {confidence:.0%} intervals "
        f"{drawn(rows)}",
        title_justify="left",
        box=SIMPLE,
    )
    for heading in ("reranker", "arm"):
        table.add_column(heading, no_wrap=True)
    for heading in ("NDCG@7", "against fair_base", "against initial", "MAP@7", "NDCG@1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["reranker"],
            row["arm"] or "-",
            interval(row["ndcg"]["7"], None),
            against_baseline(row, row, "delta_ndcg_7"),
            interval(row["delta_initial_ndcg_7"], None, signed=True),
            interval(row["map"]["7"], None),
            interval(row["ndcg"]["1"], None),
        )
    lines = diverged(rows, "reranker")
    lines += [verdict(entry) for entry in content["reranking_controls"]]
    return [table, *map(Text, lines)]
