"""Writes the Grafana dashboards of this folder.

    python launch/monitoring/dashboards.py

Needs grafana-foundation-sdk (extra `dev`). The queries are over Ray's metrics, which
docs/reference/metrics.md lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import Dashboard, DataSourceRef

FOLDER: Final = Path(__file__).with_name("dashboards")
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")


class Query(NamedTuple):
    """A query of a panel.

    Attributes:
        legend: Name of a series, with labels in double braces.
        quiet: Whether it may have no data, as a count of failures or a GPU's load.
    """

    expr: str
    legend: str
    quiet: bool = False


class Panel(NamedTuple):
    """A panel with lines over time; `unit` as Grafana names it."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    text: str = ""


def _rate(metric: str, by: str, window: str = "5m") -> str:
    return f"sum by ({by}) (rate(ray_reki_{metric}[{window}]))"


def _quantiles(metric: str, by: str) -> tuple[Query, ...]:
    legend = "".join(f" {{{{{label}}}}}" for label in by.split(", ") if label)
    labels = ", ".join(filter(None, ["le", by]))
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by ({labels}) (rate({metric}[5m])))",
            f"p{round(100 * share)}{legend}",
        )
        for share in (0.5, 0.95, 0.99)
    )


SERVICE: Final = (
    Panel(
        "Requests",
        "reqps",
        (Query(_rate("requests_total", "route, status"), "{{route}} {{status}}"),),
        "Of all gateways, by route and status.",
    ),
    Panel("Latency", "s", _quantiles("ray_reki_request_seconds_bucket", "route")),
    Panel(
        "Requests by gateway",
        "reqps",
        (Query(_rate("requests_total", "instance, replica"), "{{instance}} {{replica}}"),),
    ),
    Panel(
        "Latency of the parts, p95",
        "ms",
        (
            Query(
                "histogram_quantile(0.95, sum by (le, deployment) "
                '(rate(ray_serve_deployment_processing_latency_ms_bucket{application="reki"}[5m])))',
                "{{deployment}}",
            ),
        ),
        "From Serve: lookup, scorer, retriever and reranker are deployments.",
    ),
    Panel(
        "Requests in the parts",
        "short",
        (
            Query(
                "sum by (deployment) (ray_serve_replica_processing_queries)",
                "in work {{deployment}}",
            ),
            Query(
                "sum by (deployment) (ray_serve_deployment_queued_queries)",
                "queued {{deployment}}",
            ),
        ),
    ),
    Panel(
        "Degraded share",
        "percentunit",
        (
            Query(
                'sum(rate(ray_reki_scored_total{degraded="true"}[5m])) '
                "/ sum(rate(ray_reki_scored_total[5m]))",
                "degraded",
                quiet=True,
            ),
            Query(_rate("degraded_total", "lack"), "lacks {{lack}} per second", quiet=True),
        ),
    ),
    Panel(
        "Knowledge of scored users",
        "reqps",
        (Query(_rate("scored_total", "user_source"), "{{user_source}}"),),
    ),
    Panel(
        "Mean score",
        "percentunit",
        (
            Query(
                "sum(rate(ray_reki_request_mean_score_sum[5m])) "
                "/ sum(rate(ray_reki_request_mean_score_count[5m]))",
                "mean of 5 minutes",
            ),
            Query(
                "sum(rate(ray_reki_request_mean_score_sum[1h] offset 1d)) "
                "/ sum(rate(ray_reki_request_mean_score_count[1h] offset 1d))",
                "a day earlier",
                quiet=True,
            ),
        ),
    ),
    Panel(
        "Refused and failed",
        "reqps",
        (
            Query(_rate("queue_rejections_total", "hop"), "queue full {{hop}}", quiet=True),
            Query(_rate("hop_failures_total", "hop"), "failed {{hop}}", quiet=True),
            Query(_rate("retries_total", "hop"), "repeated {{hop}}", quiet=True),
            Query(_rate("rate_limited_total", "caller"), "over rate {{caller}}", quiet=True),
        ),
    ),
)
VERSIONS: Final = (
    Panel(
        "Version numbers",
        "none",
        (
            Query("max(ray_reki_promoted_version_number)", "promoted"),
            Query("min by (replica) (ray_reki_served_version_number)", "gateway {{replica}}"),
            Query(
                "min by (deployment, replica) (ray_reki_opened_version_number)",
                "{{deployment}} {{replica}}",
            ),
        ),
    ),
    Panel(
        "Age of the served version",
        "s",
        (
            Query(
                "time() - min by (replica) (ray_reki_served_version_created_timestamp_seconds)",
                "{{replica}}",
            ),
        ),
    ),
    Panel(
        "Refused versions",
        "short",
        (
            Query(
                "sum by (replica) (increase(ray_reki_versions_refused_total[1h]))",
                "{{replica}}",
                quiet=True,
            ),
        ),
    ),
    Panel(
        "Events",
        "short",
        (
            Query("sum(ray_reki_refresh_waiting_events)", "waiting for the refresher"),
            Query("sum(increase(ray_reki_events_accepted_total[1h]))", "accepted in an hour"),
            Query("sum(increase(ray_reki_refresh_events_total[1h]))", "published", quiet=True),
        ),
    ),
    Panel(
        "Refreshes",
        "short",
        (
            Query("sum(increase(ray_reki_refreshes_total[1h]))", "published", quiet=True),
            Query("sum(increase(ray_reki_refresh_attempts_total[1h]))", "attempted", quiet=True),
        ),
    ),
    Panel(
        "Time since the last refresh",
        "s",
        (Query("time() - max(ray_reki_refresh_last_timestamp_seconds)", "seconds"),),
    ),
    Panel(
        "Exposures",
        "wps",
        (Query(_rate("exposures_total", "outcome"), "{{outcome}}", quiet=True),),
    ),
)
EXTRACTION: Final = (
    Panel(
        "Prompts left",
        "short",
        (Query("sum(ray_reki_extract_prompts_left)", "left"),),
        "The queue of the engines.",
    ),
    Panel(
        "Prompts finished",
        "short",
        (
            Query(
                "sum by (instance, outcome) (rate(ray_reki_engine_prompts_total[5m]))",
                "{{instance}} {{outcome}} per second",
            ),
        ),
        "By node; dead prompts are dead letters.",
    ),
    Panel(
        "Dead letters by problem",
        "short",
        (
            Query(
                "sum by (problem) (increase(ray_reki_extract_quarantined_total[1h]))",
                "{{problem}}",
            ),
        ),
    ),
    Panel(
        "Tokens",
        "short",
        (
            Query(
                "sum by (instance, kind) (rate(ray_reki_engine_tokens_total[5m]))",
                "{{instance}} {{kind}} per second",
            ),
        ),
    ),
    Panel(
        "Engine replicas",
        "short",
        (
            Query("sum(ray_reki_extract_replicas)", "paid for"),
            Query(
                "sum(increase(ray_reki_extract_engine_failures_total[1h]))",
                "failures in an hour",
                quiet=True,
            ),
        ),
    ),
    Panel(
        "Time since the last progress",
        "s",
        (
            Query(
                "(time() - max(ray_reki_extract_last_progress_timestamp_seconds)) "
                "* max(ray_reki_extract_running)",
                "seconds",
            ),
        ),
    ),
    Panel(
        "Time left",
        "s",
        (Query("max(ray_reki_extract_seconds_left)", "seconds", quiet=True),),
    ),
    Panel(
        "Cost",
        "none",
        (
            Query("sum by (currency) (ray_reki_extract_cost)", "so far {{currency}}"),
            Query(
                "sum by (currency) (ray_reki_extract_expected_cost)",
                "at the end {{currency}}",
                quiet=True,
            ),
        ),
    ),
)
CLUSTER: Final = (
    Panel(
        "CPU",
        "percent",
        (Query("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
    ),
    Panel(
        "Memory",
        "percentunit",
        (
            Query(
                "max by (instance, IsHeadNode) (ray_node_mem_used / ray_node_mem_total)",
                "{{instance}} head: {{IsHeadNode}}",
            ),
        ),
    ),
    Panel(
        "GPU",
        "percent",
        (
            Query(
                "avg by (instance, GpuIndex) (ray_node_gpus_utilization)",
                "{{instance}} {{GpuIndex}}",
                quiet=True,
            ),
        ),
    ),
    Panel(
        "Disk",
        "percent",
        (Query("max by (instance) (ray_node_disk_utilization_percentage)", "{{instance}}"),),
    ),
    Panel(
        "Storage errors",
        "short",
        (
            Query(
                "sum by (instance, action) (increase(ray_reki_storage_errors_total[1h]))",
                "{{instance}} {{action}}",
                quiet=True,
            ),
        ),
        "Reads and writes of the workspace that failed.",
    ),
    Panel(
        "Failures of background loops",
        "short",
        (
            Query(
                "sum by (instance, loop) (increase(ray_reki_loop_failures_total[1h]))",
                "{{instance}} {{loop}}",
                quiet=True,
            ),
        ),
    ),
)
DASHBOARDS: Final[Mapping[str, tuple[str, tuple[Panel, ...]]]] = {
    "service": ("REKI: service", SERVICE),
    "versions": ("REKI: versions and events", VERSIONS),
    "extraction": ("REKI: extraction", EXTRACTION),
    "cluster": ("REKI: cluster", CLUSTER),
}


def build(name: str) -> Dashboard:
    """Return a dashboard of `DASHBOARDS`."""
    title, panels = DASHBOARDS[name]
    made = (
        dashboard.Dashboard(title)
        .uid(f"reki-{name}")
        .tags(["reki-ray"])
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for panel in panels:
        made = made.with_panel(_built(panel))
    return made.build()


def render(name: str) -> str:
    """Return a dashboard as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build(name)) + "\n"


def _built(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .span(8)
        .height(8)
    )
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made = made.with_target(
            prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
        )
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for known in DASHBOARDS:
        (FOLDER / f"{known}.json").write_text(render(known), encoding="utf-8")
