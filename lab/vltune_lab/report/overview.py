"""Top of the report: one sentence, what to worry about, the key figures, what was run."""

from vltune_lab.report import formats
from vltune_lab.report.markup import Markup, join, section, tag
from vltune_lab.report.schema import RunSummary, SiteSummary

LARGEST_FALL = 0.05
"""Of mAP from zero-shot to the method before training; more is a fault of initialisation."""


def worst_site(summary: RunSummary) -> SiteSummary | None:
    """The site with the lowest metric."""
    after = {site.site: summary.site_scores(site)[1] for site in summary.per_site}
    measured = [site for site in summary.per_site if after[site.site] is not None]
    return min(measured, key=lambda site: (after[site.site] or 0.0, site.site), default=None)


def headline(summary: RunSummary) -> Markup:
    """Zero-shot against federated, and the worst site, in one sentence."""
    scores = summary.headline
    is_global = summary.measured_on == "global_test" and summary.scores is None
    where = "the global test set" if is_global else "the sites' validation data"
    rounds, sites = formats.count(summary.rounds, "round"), formats.count(summary.sites, "site")
    parts = [
        f"After {rounds} over {sites}, {summary.method} reaches ",
        tag("strong", f"{formats.percent(scores.overall)} % {scores.metric}"),
        f" on {where}",
    ]
    if scores.overall is not None and scores.zero_shot is not None:
        parts += [
            ": ",
            tag("strong", compare(scores.overall, scores.zero_shot)),
            f" zero-shot ({formats.percent(scores.zero_shot)} %)",
        ]
    parts.append(".")
    worst = worst_site(summary)
    if worst is not None:
        before, after = summary.site_scores(worst)
        parts.append(f" The worst site is {worst.site} with {formats.percent(after)} %")
        if after is not None and before is not None:
            parts.append(f", {compare(after, before)} its own zero-shot")
        parts.append(".")
    return tag("p", parts, class_="headline")


def compare(new: float, old: float) -> str:
    """Readable difference: "12.4 points above", "0.3 points below", "level with"."""
    text = formats.points(new, old)
    if text == "+0.0":
        return "level with"
    return f"{text[1:]} points {'above' if text[0] == '+' else 'below'}"


def notices(summary: RunSummary) -> Markup | None:
    """What a reader should not overlook; None where all is well."""
    found = [*_model_notices(summary), *_site_notices(summary)]
    if not found:
        return None
    return tag("ul", [tag("li", text) for text in found], class_="notices")


def _model_notices(summary: RunSummary) -> list[str]:
    found = []
    best, after = summary.headline.zero_shot, summary.headline.overall
    if best is not None and after is not None and after < best:
        found.append(
            "The trained model is worse than zero-shot. Lower training.learning_rate, or train for "
            "more rounds; the curves below show which way it went."
        )
    start = summary.global_test.before_training if summary.global_test else None
    if best is not None and start and start.mAP is not None and start.mAP < best - LARGEST_FALL:
        found.append(
            f"Before training the method stands {compare(start.mAP, best)} zero-shot: more than "
            f"{100 * LARGEST_FALL:.0f} points is a fault of its initialisation."
        )
    return found


def _site_notices(summary: RunSummary) -> list[str]:
    found = [f"{site} took no part: {why}" for site, why in sorted(summary.left_out_sites.items())]
    if summary.rejected_updates:
        num_rejected = len(summary.rejected_updates)
        found.append(f"{formats.count(num_rejected, 'update')} refused by the server; see below.")
    if summary.robust_decisions:
        num_treated = len(summary.robust_decisions)
        found.append(
            f"{formats.count(num_treated, 'update')} shortened or left out by the robust rule; see "
            "below."
        )
    pairs = {site.site: summary.site_scores(site) for site in summary.per_site}
    fallen = [
        site
        for site, (before, after) in pairs.items()
        if before is not None and after is not None and after < before
    ]
    if fallen:
        found.append(f"Worse off than with zero-shot: {', '.join(fallen)}.")
    return found


def tiles(summary: RunSummary) -> Markup:
    """Key figures."""
    start = summary.global_test.before_training if summary.global_test else None
    worst, scores = worst_site(summary), summary.headline
    note = "the better reading" if summary.scores is None else "before training"
    shown = [
        (f"zero-shot {scores.metric}", f"{formats.percent(scores.zero_shot)} %", note),
        (f"federated {scores.metric}", f"{formats.percent(scores.overall)} %", _gain(summary)),
        (
            "worst site",
            f"{formats.percent(scores.worst_site)} %",
            worst.site if worst else "not measured",
        ),
        (
            "sent up",
            formats.size(summary.bytes_up_per_site_per_round),
            "a site and round",
        ),
        (
            "wall time",
            formats.duration(summary.wall_seconds),
            formats.count(summary.rounds, "round"),
        ),
    ]
    if start is not None:
        untrained = ("before training", f"{formats.percent(start.mAP)} %", summary.method)
        shown.insert(1, untrained)
    return tag(
        "div",
        [
            tag(
                "div",
                tag("span", name, class_="name"),
                tag("span", value, class_="value"),
                tag("span", note, class_="note"),
                class_="tile",
            )
            for name, value, note in shown
        ],
        class_="tiles",
    )


def _gain(summary: RunSummary) -> str:
    text = formats.points(summary.headline.overall, summary.headline.zero_shot)
    return "not compared" if text == formats.NOT_MEASURED else f"{text} points"


def what_was_run(summary: RunSummary) -> Markup:
    """Job, method, sites, rounds, seed, where and when."""
    num_examples = sum(site.num_examples for site in summary.per_site)
    facts = [
        ("job", summary.job),
        ("method", summary.method),
        ("sites", f"{summary.sites}, {num_examples} training images in all"),
        ("rounds", summary.rounds),
        ("seed", summary.seed),
        ("environment", summary.environment),
        ("started", summary.started or formats.NOT_MEASURED),
        ("hardware", summary.hardware or formats.NOT_MEASURED),
    ]
    return section("What was run", facts_list(facts))


def facts_list(facts: list[tuple[str, object]]) -> Markup:
    """Names and values."""
    return tag(
        "dl",
        [join(tag("dt", name), tag("dd", str(value))) for name, value in facts],
        class_="facts",
    )
