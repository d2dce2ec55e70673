import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vltune_lab.report.commands import register
from vltune_lab.report.example_file import ExamplesError
from vltune_lab.report.html import build_report
from vltune_lab.report.summary import SummaryError

VOID = {"br", "col", "img", "meta"}


class Page(HTMLParser):
    """Checks that every element is closed where it should be; collects text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> Iterator[str]:
        return (str(attrs[name]) for _, attrs in self.elements if name in attrs)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page_of(folder: Path) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_it_is_one_file_that_loads_nothing(run_folder: Path) -> None:
    page = page_of(run_folder)
    names = {name for name, _ in page.elements}
    assert {"h1", "svg", "polyline", "table"} <= names
    assert not names & {"script", "link", "iframe", "object", "embed", "form"}
    for attribute in ("src", "href", "xlink:href", "action"):
        assert all(value.startswith("data:image/png") for value in page.values(attribute))
    assert "http" not in (run_folder / "report.html").read_text().replace("http-equiv", "")


def test_the_headline_compares_zero_shot_federated_and_worst_site(run_folder: Path) -> None:
    # mAP is the mean of 0.9, 0.5, 0.7 and 0.3; the class without positives does not count.
    text = "".join(page_of(run_folder).texts)
    assert (
        "After 2 rounds over 3 sites, FedMPT reaches 60.0 % mAP on the global test set: "
        "15.0 points above zero-shot (45.0 %). The worst site is site-2 with 47.0 %, "
        "7.0 points above its own zero-shot."
    ) in text


def test_a_run_with_another_metric_has_a_report(run_folder: Path) -> None:
    content = json.loads((run_folder / "summary.json").read_text())
    for entry in content["per_round"]:
        entry.update(mAP=None, worst_site_mAP=None, score=0.5, worst_site_score=0.4)
    content["per_round"][1]["exactness_error"] = 0.25
    for value, entry in enumerate(content["per_site"]):
        figures = {"zero_shot_accuracy": 0.2, "accuracy": 0.4 + value / 10, "rouge_l": 0.7}
        entry.update(mAP=None, zero_shot_mAP=None, CF1=None, OF1=None, metrics=figures)
    scores = {"metric": "accuracy", "zero_shot": 0.2, "overall": 0.5, "worst_site": 0.4}
    change(
        run_folder,
        scores=scores,
        global_mAP=None,
        zero_shot_mAP=None,
        global_test=None,
        measured_on="site_histograms",
        per_round=content["per_round"],
        per_site=content["per_site"],
    )
    text = "".join(page_of(run_folder).texts)
    assert "reaches 50.0 % accuracy on the sites' validation data: 30.0 points above" in text
    assert "The worst site is site-1 with 40.0 %, 20.0 points above its own zero-shot" in text
    assert "rouge_l" in text
    assert "exactness error" in text
    assert "mAP" not in text.replace("global_mAP", "")


def test_a_run_below_zero_shot_says_so_and_what_to_do(run_folder: Path) -> None:
    change(run_folder, zero_shot_mAP=0.66)
    text = page_of(run_folder).text
    assert "6.0 points below" in text
    assert "Lower training.learning_rate" in text
    assert "a fault of its initialisation" in text  # 0.45 before training


def test_what_went_wrong_stands_in_the_report(run_folder: Path) -> None:
    text = page_of(run_folder).text
    assert "1 update refused by the server" in text
    assert "2 updates shortened or left out by the robust rule" in text
    assert "head_bias holds NaN or infinity" in text
    assert "site-4 took no part: differs from the majority" in text


def test_classes_are_sorted_by_the_federated_value(run_folder: Path) -> None:
    texts = page_of(run_folder).texts
    rows = texts[texts.index("By class, on the global test set") :]
    names = [text for text in rows if text in ("cat", "dog", "traffic light", "cup")]
    assert names[:4] == ["cat", "traffic light", "dog", "cup"]
    assert "Not scored, without positives: kite" in texts


def test_nothing_of_the_data_is_taken_as_markup(run_folder: Path) -> None:
    evil = "<script>alert('x')</script>\"'&"
    summary = json.loads((run_folder / "summary.json").read_text())
    text = json.dumps(summary).replace('"cat"', json.dumps(evil))
    text = text.replace("site-1", json.dumps(evil)[1:-1]).replace("FedMPT", "<b>FedMPT</b>")
    (run_folder / "summary.json").write_text(text)
    change(run_folder, job=evil, left_out_sites={evil: evil}, config={evil: [evil]})
    line = {"site": evil, "round": 1, "metric": "mAP", "value": 0.3}
    (run_folder / "metrics.jsonl").write_text(json.dumps(line))
    page = page_of(run_folder)
    assert not {"script", "b"} & {name for name, _ in page.elements}
    assert evil in page.text


def test_a_lone_surrogate_in_a_name_does_not_stop_the_report(run_folder: Path) -> None:
    change(run_folder, job="\ud800 job")
    assert "? job" in page_of(run_folder).text


def test_a_run_of_nothing_but_the_required_keys_has_a_report(run_folder: Path) -> None:
    change(
        run_folder,
        zero_shot_mAP=None,
        global_mAP=None,
        worst_site_mAP=None,
        per_round=[],
        per_site=[],
        bytes_per_site_per_round=[],
        wall_seconds_by_phase={},
        rejected_updates=[],
        robust_decisions=[],
        global_test=None,
        measured_on="site_histograms",
        thresholds={},
        config={},
        left_out_sites={},
    )
    text = page_of(run_folder).text
    assert "nothing was measured" in text
    assert "None." in text


def test_curves_of_the_sites_come_from_metrics_and_half_a_line_is_counted(
    run_folder: Path,
) -> None:
    lines = [
        {"site": site, "round": number, "split": "validation", "metric": "mAP", "value": 0.3}
        for site in ("site-1", "site-2")
        for number in (0, 1)
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"event": "round"}\n{"site": "si'
    (run_folder / "metrics.jsonl").write_text(text)
    page = page_of(run_folder)
    curves = [a for name, a in page.elements if name == "polyline" and a["class"] == "line site"]
    assert len(curves) == 2
    assert "1 line of metrics.jsonl could not be read" in page.text


def test_it_is_built_anew_from_changed_files(run_folder: Path) -> None:
    build_report(run_folder)
    change(run_folder, job="another")
    assert "another" in page_of(run_folder).text


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("summary.json", "{", SummaryError),
        ("summary.json", "{}", SummaryError),
        ("examples.json", "[", ExamplesError),
        ("examples.json", '{"seed": 1}', ExamplesError),
    ],
)
def test_a_damaged_file_is_named(
    run_folder: Path, name: str, content: str, error: type[ValueError]
) -> None:
    (run_folder / name).write_text(content)
    with pytest.raises(error, match=re.escape(str(run_folder / name))):
        build_report(run_folder)
    assert not (run_folder / "report.html").exists()


def test_the_command_prints_where_the_report_is(run_folder: Path) -> None:
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["report", str(run_folder)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(run_folder / "report.html")
