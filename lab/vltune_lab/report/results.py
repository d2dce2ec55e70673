"""What came of the run: by site, on the global test set, by class."""

from vltune_lab.report import formats
from vltune_lab.report.charts import Bar, bar_row
from vltune_lab.report.markup import Markup, section, table, tag
from vltune_lab.report.schema import GlobalTest, Reading, RunSummary


def by_site(summary: RunSummary) -> Markup:
    """Zero-shot against federated at each site."""
    if summary.scores is not None:
        return _by_site_of(summary)
    header = ["site", "images", "zero-shot", "federated", "change", "CF1", "OF1"]
    rows = [
        [
            site.site,
            site.num_examples,
            formats.percent(site.zero_shot_mAP),
            formats.percent(site.mAP),
            formats.points(site.mAP, site.zero_shot_mAP),
            formats.percent(site.CF1),
            formats.percent(site.OF1),
        ]
        for site in summary.per_site
    ]
    thresholds = sorted({f"{value:g}" for value in summary.thresholds.values()})
    note = "mAP, CF1 and OF1 in % of the final global model on each site's own validation data."
    if thresholds:
        note += f" CF1 and OF1 at threshold {', '.join(thresholds)}."
    return section(
        "mAP by site, zero-shot and federated", table(header, rows), tag("p", note, class_="quiet")
    )


def _by_site_of(summary: RunSummary) -> Markup:
    """The run's metric at each site, and every other figure that the sites sent."""
    metric = summary.headline.metric
    known = {f"zero_shot_{metric}", metric}
    others = sorted({name for site in summary.per_site for name in site.metrics} - known)
    rows = []
    for site in summary.per_site:
        before, after = summary.site_scores(site)
        shown = [formats.percent(site.metrics.get(name)) for name in others]
        figures = [formats.percent(before), formats.percent(after), formats.points(after, before)]
        rows.append([site.site, site.num_examples, *figures, *shown])
    header = ["site", "examples", "zero-shot", "federated", "change", *others]
    note = "In % of the final model, the site's own part included, on each site's validation data."
    return section(
        f"{metric} by site, zero-shot and federated",
        table(header, rows),
        tag("p", note, class_="quiet"),
    )


def on_global_test(summary: RunSummary) -> Markup | None:
    """Readings on the test set that no site owns."""
    test = summary.global_test
    if test is None:
        return None
    readings = [
        ("zero-shot, pooled image feature", test.zero_shot_pooled),
        ("zero-shot, patch features", test.zero_shot_patch),
        (f"{summary.method} before training", test.before_training),
        (f"{summary.method}, federated", test.federated),
    ]
    rows = [
        [name, formats.percent(r.mAP), formats.percent(r.CF1), formats.percent(r.OF1)]
        for name, r in readings
        if r is not None
    ]
    note = f"{test.num_examples} images that no site owns."
    return section(
        "On the global test set",
        table(["model", "mAP %", "CF1 %", "OF1 %"], rows),
        tag("p", note, class_="quiet"),
    )


def better_zero_shot(test: GlobalTest) -> tuple[str, Reading] | None:
    """The zero-shot reading with the higher mAP, and its name."""
    readings = {
        "pooled image feature": test.zero_shot_pooled,
        "patch features": test.zero_shot_patch,
    }
    measured = [(name, reading) for name, reading in readings.items() if reading is not None]
    return max(measured, key=lambda pair: pair[1].mAP or 0.0, default=None)


def by_class(summary: RunSummary) -> Markup | None:
    """Average precision of each class, sorted by the federated one."""
    test = summary.global_test
    if test is None or not test.federated.per_class_ap:
        return None
    aps = test.federated.per_class_ap
    zero_shot = better_zero_shot(test)
    old = zero_shot[1].per_class_ap if zero_shot else {}
    scored = {name: ap for name, ap in aps.items() if ap is not None}
    rows = [
        _class_row(name, ap, old.get(name), has_zero_shot=zero_shot is not None)
        for name, ap in sorted(scored.items(), key=lambda item: (-item[1], item[0]))
    ]
    unscored = [name for name in aps if name not in scored]
    legend = [tag("span", "federated", class_="key federated")]
    if zero_shot is not None:
        legend.append(tag("span", f"zero-shot ({zero_shot[0]})", class_="key zero-shot"))
    gained = sum(1 for name, ap in scored.items() if ap > (old.get(name) or 0.0))
    note = "Average precision in %; the full width is 100 %."
    if zero_shot is not None:
        note += f" {gained} of {len(scored)} classes gained."
    return section(
        "By class, on the global test set",
        tag("p", legend, class_="legend"),
        tag("div", rows, class_="rows classes"),
        tag("p", note, class_="quiet"),
        tag("p", f"Not scored, without positives: {', '.join(unscored)}", class_="quiet")
        if unscored
        else None,
    )


def _class_row(name: str, new: float, old: float | None, *, has_zero_shot: bool) -> Markup:
    bars, figures = [Bar(new, "federated")], [formats.percent(new)]
    if has_zero_shot:
        bars.append(Bar(old or 0.0, "zero-shot"))
        figures.append(formats.percent(old))
    return bar_row(name, bars, figures)
