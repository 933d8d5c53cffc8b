"""Stage report: report.json for programs, report.html for people."""

from __future__ import annotations

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import REPORT_HTML, REPORT_JSON, Workspace
from reki_ray.evaluation.report import gather, render_html


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Collect the results of the stages, and render them."""
    content = gather(config, workspace)
    workspace.write_json(REPORT_JSON, content)
    workspace.write_text(REPORT_HTML, render_html(content, workspace.stages()))
    reporter.say(f"report: {workspace.location}/{REPORT_HTML}")
    return StageResult(rows_in=len(content["arms"]), rows_out=len(content["arms"]))
