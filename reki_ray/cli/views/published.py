"""Published versions, updates, experiments, and imported knowledge."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from reki_ray.core.formats import counted
from reki_ray.schema import SIDES

if TYPE_CHECKING:  # imports of Ray and torch, which most commands do not need
    from reki_ray.experiments.analysis import AbResult, VariantResult
    from reki_ray.experiments.experiment import Experiment
    from reki_ray.extraction.import_report import ImportReport
    from reki_ray.stages.update import Update
    from reki_ray.store.admin import Exported, Versions

_IMPORT_PROBLEMS = ("unknown", "blank", "refusal", "loop", "malformed", "duplicate")


def versions_table(versions: Versions) -> Table:
    """Show all versions, and which of them is served."""
    title = "; ".join(part for part in (versions.done, versions.problem, versions.root) if part)
    headings = ("version", "arm", "model", "holds", "users", "items", "over", "promoted")
    table = Table(*headings, title=escape(title), title_justify="left")
    for entry in versions.versions:
        name = f"v{entry.version}" + (" (current)" if entry.current else "")
        manifest, promoted = entry.manifest, ""
        if manifest is None:
            table.add_row(name, escape(f"does not open: {entry.problem}"))
            continue
        if entry.promoted_at is not None:
            promoted = f"{datetime.fromtimestamp(entry.promoted_at, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(
            name,
            manifest.arm,
            manifest.model_fingerprint[:12],
            f"{manifest.prestore}, {manifest.dtype}" if manifest.fallback else "no vectors",
            f"{manifest.users:,}",
            f"{manifest.items:,}",
            "" if entry.base is None else f"v{entry.base}",
            promoted,
        )
    return table


def export_text(export: Exported) -> str:
    """Say how many vectors an export wrote."""
    return (
        f"v{export.version}: {counted(export.vectors, 'vector')} in {export.kind}, "
        f"namespace {export.namespace}; {export.written:,} of them new"
    )


def update_table(update: Update) -> Table:
    """Show what a round of `reki update` changed."""
    batches = f"{len(update.batches):,} {'batch' if len(update.batches) == 1 else 'batches'}"
    table = Table(
        *("side", "ids", "new", "moved", "clusters", "asked again"),
        "largest moved share, centre shift",
        title=f"version v{update.version}: {counted(update.events, 'event')} in {batches}, "
        f"{update.prompts_asked:,} of {counted(update.prompts, 'prompt')} asked",
        title_justify="left",
    )
    for name in SIDES:
        side = getattr(update, name)
        counts = (side.ids, side.new, side.moved, side.clusters, len(side.asked_again))
        table.add_row(
            name,
            *map(str, counts),
            f"{side.largest_moved_share:.3f}, {side.largest_centre_shift:.4f}",
        )
    return table


def experiment_table(experiment: Experiment) -> Table:
    """Show an experiment's variants and their shares."""
    state = "running" if experiment.ended_at is None else "ended"
    title = f"Experiment {experiment.name}, {state}"
    table = Table("variant", "version", "share", title=title, title_justify="left")
    for variant in experiment.variants:
        table.add_row(variant.name, f"v{variant.version}", f"{variant.share:.1%}")
    return table


def ab_table(result: AbResult) -> Group:
    """Compare the variants of an experiment."""
    table = Table(
        title=f"Experiment {result.experiment}, {result.confidence:.0%} intervals over all looks",
        title_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    for heading in ("version", "users", "exposures", "clicks", "CTR", "lift", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in result.variants:
        table.add_row(
            variant.name,
            f"v{variant.version}",
            f"{variant.users:,}",
            f"{variant.exposures:,}",
            f"{variant.clicks:,}",
            "-" if variant.ctr is None else f"{variant.ctr:.4f}",
            _lift(variant),
            "not significant" if variant.verdict == "not apart" else variant.verdict,
        )
    return Group(table, *(Text(line) for line in _remarks(result)))


def import_table(report: ImportReport) -> Group:
    """Show what became of the entries of an imported file."""
    table = Table(
        "entries",
        Column("count", justify="right"),
        "for example",
        title=f"{report.file} as {report.kind} knowledge of source {report.source!r}, "
        f"revision {report.revision}",
        title_justify="left",
    )
    table.add_row("in the file", f"{report.entries:,}")
    table.add_row("imported", f"{report.imported:,}")
    for problem in _IMPORT_PROBLEMS:
        ids = report.examples.get(problem, [])  # type: ignore[call-overload]
        # As Text: ids are not markup.
        table.add_row(problem, f"{getattr(report, problem):,}", Text(", ".join(ids)))
    return Group(table, Text("`reki extract` skips subjects with imported knowledge."))


def _lift(variant: VariantResult) -> str:
    if variant.lift is None:
        return "-"
    bounds = variant.lift_interval
    text = f"{variant.lift:+.1%}"
    return text if bounds is None else f"{text} [{bounds[0]:+.1%}, {bounds[1]:+.1%}]"


def _remarks(result: AbResult) -> list[str]:
    from reki_ray.experiments.analysis import FEWEST_CLICKS  # imports scipy

    lines = []
    if result.srm:
        lines.append(
            f"SAMPLE RATIO MISMATCH (p = {result.srm_p:.2g}): users are not split as the shares "
            "say. Find the cause before you trust any lift."
        )
    sentences = {
        "not apart": "no significant difference so far",
        "too few clicks": f"fewer than {FEWEST_CLICKS} clicks in a variant, too few to compare",
    }
    for variant in result.variants[1:]:
        verdict = sentences.get(variant.verdict, variant.verdict)
        lines.append(f"{variant.name} against {result.variants[0].name}: {verdict}")
    for count, what in (
        (result.mixed_users, "users were shown several variants and are left out"),
        (result.unmatched_clicks, "clicks on items that the experiment did not show to that user"),
        (result.damaged_lines, "damaged log lines were skipped"),
    ):
        if count:
            lines.append(f"{count:,} {what}")
    return lines
