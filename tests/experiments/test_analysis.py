"""`reki ab` on simulated logs: what was planted is found, what was not is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import bootstrap, dirichlet_multinomial, multinomial, norm

from reki_ray.cli.views.published import ab_table
from reki_ray.errors import ConfigError
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.segments import SegmentWriter
from reki_ray.experiments.analysis import AbResult, VariantResult, ab, compared
from reki_ray.experiments.confidence_sequences import (
    EFFECT,
    Rate,
    half_width,
    rate_of,
    sample_ratio,
)
from reki_ray.experiments.experiment import EXPERIMENT, Experiment, Variant
from reki_ray.experiments.exposures import Exposure
from reki_ray.experiments.user_hash import open_hasher

BEGIN = 1_000_000
ITEMS = tuple(f"m{number}" for number in range(10))


class Logs:
    """A workspace whose logs a test fills."""

    def __init__(self, workspace: Path, *, reki: float = 0.5, ended: int | None = None) -> None:
        self.root = workspace / "publish"
        self.root.mkdir()
        self.experiment = Experiment(
            name="test",
            salt="salt",
            variants=(
                Variant(name="base", version=1, share=1 - reki),
                Variant(name="reki", version=2, share=reki),
            ),
            changed_at=BEGIN,
            ended_at=ended,
        )
        (self.root / EXPERIMENT).write_text(self.experiment.model_dump_json())
        folders = OnlineFolders.beside(self.root)
        self._hash = open_hasher(folders.key)
        self._exposures = SegmentWriter(folders.exposures, "gateway")
        self._events = EventLog(folders.events, "gateway")

    def show(
        self,
        user: str,
        request: str = "r",
        items: Sequence[str] = ITEMS,
        *,
        time: int = BEGIN,
        variant: str = "base",
        experiment: str = "test",
    ) -> None:
        one = Exposure(request, experiment, variant, self._hash(user), tuple(items), time)
        self._exposures.append([{name: getattr(one, name) for name in Exposure.__slots__}])

    def click(
        self,
        user: str,
        item: str,
        request: str | None = None,
        *,
        time: int = BEGIN + 60,
        received: int | None = None,
    ) -> None:
        self._events.append([Event(user, item, "click", time, None, request, received)])

    def simulate(self, users: int, ctr: dict[str, float], *, lost: float = 0.0) -> None:
        """Users with click rates of their own around a variant's; a share of reki's is lost."""
        random = np.random.default_rng(5)
        shown, clicked = [], []
        for number in range(users):
            user = f"u{number}"
            variant = self.experiment.assign(user).name
            if variant == "reki" and random.random() < lost:
                continue
            rate = ctr[variant] * random.gamma(4, 0.25)
            for request in range(random.integers(1, 6)):
                name = f"{user}-{request}"
                one = Exposure(name, "test", variant, self._hash(user), ITEMS, BEGIN)
                shown.append({key: getattr(one, key) for key in Exposure.__slots__})
                for item in np.asarray(ITEMS)[random.random(10) < rate]:
                    clicked.append(Event(user, str(item), "click", BEGIN + 5, None, name))
        self._exposures.append(shown)
        self._events.append(clicked)


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def printed(result: AbResult) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ab_table(result))
    return console.export_text()


def counts(result: AbResult) -> list[tuple[int, int, int]]:
    return [(one.users, one.exposures, one.clicks) for one in result.variants]


def test_equal_variants_are_not_apart(logs: Logs) -> None:
    logs.simulate(4_000, {"base": 0.1, "reki": 0.1})
    result = ab(logs.root)
    reki = result.variants[1]
    assert reki.verdict == "not apart"
    assert reki.lift_interval is not None
    assert reki.lift_interval[0] < 0 < reki.lift_interval[1]
    assert not result.srm
    assert result.srm_p is not None
    assert result.srm_p > 0.001
    text = printed(result)
    assert "reki against base: no significant difference so far" in text
    assert "MISMATCH" not in text


def test_a_planted_lift_is_found(logs: Logs) -> None:
    logs.simulate(4_000, {"base": 0.1, "reki": 0.12})
    result = ab(logs.root)
    base, reki = result.variants
    assert (base.verdict, reki.verdict) == ("base", "ahead")
    assert base.lift is None
    assert reki.lift_interval is not None
    assert 0 < reki.lift_interval[0] < 0.2 < reki.lift_interval[1]
    assert not result.srm
    assert "reki against base: ahead" in printed(result)


def test_a_planted_loss_is_found(logs: Logs) -> None:
    logs.simulate(4_000, {"base": 0.12, "reki": 0.1})
    assert ab(logs.root).variants[1].verdict == "behind"


def test_a_planted_sample_ratio_mismatch_is_reported(logs: Logs) -> None:
    logs.simulate(4_000, {"base": 0.1, "reki": 0.1}, lost=0.25)
    result = ab(logs.root)
    assert result.srm
    assert "SAMPLE RATIO MISMATCH" in printed(result)
    assert "before you trust any lift" in printed(result)


def test_duplicates_count_once(logs: Logs) -> None:
    for _ in range(3):
        logs.show("u0", "r", ["m1", "m2", "m2"])
        logs.click("u0", "m1", "r")
    logs.click("u0", "m1", "r", time=BEGIN + 99)  # a second click on the same exposure
    logs.show("u0", "another", ["m1"])
    assert counts(ab(logs.root)) == [(1, 3, 1), (0, 0, 0)]


def test_a_click_without_a_request_counts_for_the_last_exposure_in_the_window(logs: Logs) -> None:
    logs.show("u0", "early", ["m1"], time=BEGIN)
    logs.show("u0", "late", ["m1"], time=BEGIN + 100)
    logs.show("u1", "r", ["m1"], time=BEGIN)
    for _ in range(2):
        logs.click("u0", "m1", time=BEGIN + 100)
    logs.click("u0", "m1", time=BEGIN + 150)
    assert counts(ab(logs.root))[0] == (2, 3, 1)
    logs.click("u0", "m1", time=BEGIN + 50)
    assert counts(ab(logs.root))[0] == (2, 3, 2)


def test_clicks_on_what_was_not_shown_do_not_count(logs: Logs) -> None:
    logs.show("u0", "r", ["m1"], time=BEGIN + 10)
    logs.show("u1", "r", ["m2"], time=BEGIN + 10)  # a client that repeats ids of requests
    logs.click("u0", "m1", time=BEGIN + 5)  # before it was shown
    logs.click("u0", "m1", time=BEGIN + 10 + 1801)  # after the window
    logs.click("u0", "m2", "r")  # shown to another user
    logs.click("u0", "m1", "unknown")
    logs.click("u0", "m7", "r")
    logs.click("u9", "m1", "r")  # of a user whom the experiment did not meet
    result = ab(logs.root)
    assert counts(result)[0] == (2, 2, 0)
    assert result.unmatched_clicks == 5
    assert "5 clicks on items that the experiment did not show" in printed(result)


def test_only_the_asked_types_of_events_are_clicks(logs: Logs) -> None:
    logs.show("u0", "r", ["m1"])
    logs.click("u0", "m1", "r")
    assert counts(ab(logs.root, clicks=["purchase"]))[0] == (1, 1, 0)


def test_other_experiments_and_times_do_not_count(tmp_path: Path) -> None:
    logs = Logs(tmp_path, ended=BEGIN + 100)
    logs.show("u0", "before", time=BEGIN - 1)
    logs.show("u1", "after", time=BEGIN + 101)
    logs.show("u2", "other", experiment="other")
    logs.show("u3", "gone", variant="gone")
    logs.show("u4", "counts", time=BEGIN + 100)
    assert counts(ab(logs.root)) == [(1, 10, 0), (0, 0, 0)]
    assert counts(ab(logs.root, since=0)) == [(2, 20, 0), (0, 0, 0)]


def test_users_of_several_variants_are_left_out_and_told_of(logs: Logs) -> None:
    logs.show("u0", "r1", variant="base")
    logs.show("u0", "r2", variant="reki")
    logs.show("u1", "r3", variant="reki")
    result = ab(logs.root)
    assert counts(result) == [(0, 0, 0), (1, 10, 0)]
    assert result.mixed_users == 1


def test_a_handful_of_clicks_tells_nothing(logs: Logs) -> None:
    for number in range(20):
        logs.show(f"u{number}", variant="base" if number % 2 else "reki")
    for number in range(0, 20, 2):
        logs.click(f"u{number}", "m1", "r")
    result = ab(logs.root)
    assert result.variants[1].verdict == "too few clicks"
    assert result.variants[1].lift is None
    assert "fewer than 10 clicks in a variant" in printed(result)


def test_an_experiment_without_exposures_has_nothing_to_tell(logs: Logs) -> None:
    result = ab(logs.root)
    assert counts(result) == [(0, 0, 0), (0, 0, 0)]
    assert (result.srm_p, result.srm) == (None, False)
    assert [one.ctr for one in result.variants] == [None, None]
    assert "too few to compare" in printed(result)


def test_damaged_lines_are_told_of(logs: Logs) -> None:
    logs.show("u0")
    [path] = OnlineFolders.beside(logs.root).exposures.iterdir()
    path.write_bytes(b"broken\n" + path.read_bytes())
    result = ab(logs.root)
    assert result.damaged_lines == 1
    assert counts(result)[0] == (1, 10, 0)


def test_an_experiment_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no experiment is running"):
        ab(tmp_path)
    with pytest.raises(ConfigError, match="there is no experiment summer"):
        ab(tmp_path, "summer")


@pytest.mark.parametrize("behind", [-3_000, 0, 5, 250])
def test_a_click_of_a_sender_whose_clock_is_wrong_finds_its_exposure(
    logs: Logs, behind: int
) -> None:
    logs.show("u0", "r", ["m1"], time=BEGIN + 10)
    for _ in range(2):  # sent twice
        logs.click("u0", "m1", time=BEGIN + 12 - behind, received=BEGIN + 12)
    result = ab(logs.root)
    assert (counts(result)[0], result.unmatched_clicks) == ((1, 1, 1), 0)


def test_a_click_counts_for_no_exposure_after_its_receipt_or_long_before(logs: Logs) -> None:
    logs.show("u0", "r", ["m1"], time=BEGIN + 2_000)
    logs.click("u0", "m1", time=BEGIN + 1_990, received=BEGIN + 1_990)
    logs.click("u0", "m1", time=BEGIN + 1_000, received=BEGIN + 5_000)  # sent late
    logs.click("u0", "m1", time=BEGIN + 3_801, received=BEGIN + 3_801)
    result = ab(logs.root)
    assert (counts(result)[0], result.unmatched_clicks) == ((1, 1, 0), 3)
    logs.click("u0", "m1", time=BEGIN + 3_799, received=BEGIN + 9_000)
    assert counts(ab(logs.root))[0] == (1, 1, 1)


# --- statistics ----------------------------------------------------------------------------------


def test_the_variance_is_that_of_drawing_users() -> None:
    random = np.random.default_rng(0)
    shown = random.integers(1, 30, 400).astype(float)
    clicked = random.binomial(shown.astype(int), random.beta(2, 18, 400)).astype(float)
    ours = rate_of(shown, clicked)
    assert ours is not None

    def rate(clicks: np.ndarray, exposures: np.ndarray, axis: int = -1) -> np.ndarray:
        found: np.ndarray = clicks.sum(axis=axis) / exposures.sum(axis=axis)
        return found

    theirs = bootstrap((clicked, shown), rate, paired=True, n_resamples=20_000, rng=2)
    assert ours.value == pytest.approx(rate(clicked, shown))
    assert ours.variance**0.5 == pytest.approx(theirs.standard_error, rel=0.03)


@pytest.mark.parametrize(("shown", "clicked"), [([], []), ([0, 0], [0, 0]), ([5], [1])])
def test_nobody_or_one_user_has_no_rate(shown: list[float], clicked: list[float]) -> None:
    assert rate_of(np.array(shown, float), np.array(clicked, float)) is None


def test_a_confidence_sequence_is_the_boundary_of_its_mixture() -> None:
    """Where the likelihood ratio, mixed over effects, reaches the inverse of the error."""
    variance, effect, grid = 0.004, 0.05, np.linspace(-1, 1, 200_001)
    half = half_width(variance, effect, 0.95)
    prior = norm.pdf(grid, scale=effect)
    ratio = norm.pdf(half, loc=grid, scale=variance**0.5) / norm.pdf(half, scale=variance**0.5)
    assert np.trapezoid(prior * ratio, grid) == pytest.approx(1 / 0.05, rel=1e-3)


def test_what_looking_always_costs_in_width() -> None:
    """As docs/explanation/events.md says, by the standard error of the lift."""
    costs = {
        share: half_width(share**2, EFFECT, 0.95) / (norm.ppf(0.975) * share)
        for share in (0.005, 0.01, 0.02, 0.05, 0.1)
    }
    assert {share: round(cost, 1) for share, cost in costs.items()} == {
        0.005: 1.8,
        0.01: 1.7,
        0.02: 1.6,
        0.05: 1.6,
        0.1: 1.9,
    }


@dataclass
class Peeking:
    """Shares of A/A experiments that were called, at any look and at the last one."""

    always: float
    fixed: float
    fixed_at_the_end: float
    mismatch: float


def peek(runs: int, *, users: int, looks: int, returning: bool, ctr: float = 0.05) -> Peeking:
    """Simulated A/A experiments that are looked at all the time.

    Args:
        runs: Experiments.
        users: Users of both variants together, at the end.
        looks: Looks of each experiment.
        returning: Users come again and again; else each comes once.
        ctr: Mean click-through rate; every user has one of their own.
    """
    random = np.random.default_rng(7)
    called = np.zeros((runs, 4), dtype=bool)
    for run in range(runs):
        variant = random.random(users) < 0.5
        arrival = np.sort(random.integers(0, looks, users))
        rates = np.minimum(ctr * random.gamma(2, 0.5, users), 1.0)
        heavy = np.ceil(random.pareto(1.5, users) + 1).clip(max=50)
        shown, clicked = np.zeros(users), np.zeros(users)
        for look in range(looks):
            here = (arrival <= look) if returning else (arrival == look)
            visits = here & (random.random(users) < (0.3 if returning else 1.0))
            exposures = np.where(visits, 10 * heavy, 0).astype(int)
            shown += exposures
            clicked += random.binomial(exposures, rates)
            seen = shown > 0
            sides = [_side(shown[seen & v], clicked[seen & v]) for v in (~variant, variant)]
            (base, base_rate), (other, rate) = sides
            verdict = compared(other, rate, base, base_rate, 0.95).verdict
            called[run, 0] |= verdict in {"ahead", "behind"}
            if rate is not None and base_rate is not None and verdict != "too few clicks":
                error = (rate.variance + base_rate.variance) ** 0.5
                called[run, 2] = abs(rate.value - base_rate.value) > norm.ppf(0.975) * error
                called[run, 1] |= called[run, 2]
            found = sample_ratio([base.users, other.users], [0.5, 0.5])
            called[run, 3] |= found is not None and found < 0.05
    return Peeking(*called.mean(axis=0).tolist())


def _side(shown: np.ndarray, clicked: np.ndarray) -> tuple[VariantResult, Rate | None]:
    one = VariantResult(
        name="v",
        version=1,
        share=0.5,
        users=len(shown),
        exposures=int(shown.sum()),
        clicks=int(clicked.sum()),
        ctr=None,
    )
    return one, rate_of(shown, clicked)


@pytest.mark.parametrize("returning", [False, True])
def test_who_looks_all_the_time_is_misled_no_more_often_than_the_level_says(
    returning: bool,
) -> None:
    """A/A: intervals for one look would be wrong far more often, at one look they are right."""
    runs = 200
    found = peek(runs, users=1_500, looks=40, returning=returning)
    most = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5  # and the error of the simulation
    assert found.always <= most
    assert found.mismatch <= most
    assert found.fixed_at_the_end <= most
    assert found.fixed > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("ctr", [0.01, 0.2])
@pytest.mark.parametrize("returning", [False, True])
def test_who_looks_all_the_time_is_not_misled_in_many_experiments(
    returning: bool, ctr: float
) -> None:
    runs = 1_000
    found = peek(runs, users=3_000, looks=100, returning=returning, ctr=ctr)
    most = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert found.always <= most
    assert found.mismatch <= most


def test_the_sample_ratio_test_is_the_bayes_factor_of_its_publication() -> None:
    counts, prior = [5_150, 4_850], [50.0, 50.0]
    drawn = dirichlet_multinomial(prior, sum(counts)).pmf(counts)
    exact = multinomial(sum(counts), [0.5, 0.5]).pmf(counts)
    assert sample_ratio(counts, [0.5, 0.5]) == pytest.approx(exact / drawn)
    assert sample_ratio([5_000, 5_000], [0.5, 0.5]) == 1.0
    assert sample_ratio([6_000, 4_000], [0.5, 0.5]) == pytest.approx(0.0, abs=1e-40)
    assert sample_ratio([0, 0], [0.5, 0.5]) is None
    assert sample_ratio([10, 0], [1.0, 0.0]) == 1.0
    assert sample_ratio([10, 1], [1.0, 0.0]) == 0.0
