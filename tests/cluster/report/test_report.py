"""The report: figures that can be checked by hand, and a page that holds them."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from cluster.report.estimates import paired
from cluster.report.figures import _metrics
from cluster.report.page import heat_map, page, reliability_diagram
from cluster.report.records import (
    Abstention,
    Answers,
    BaseFigures,
    Calibration,
    CalibrationBin,
    Estimate,
    FailedTask,
    Fidelity,
    HeldOut,
    KeptFigures,
    Metrics,
    OneRequest,
    RunReport,
    ServedAnswer,
    TaskFigures,
    UnseenFigures,
)
from cluster.report.tables import report_tables


def task(name: str, fused: float) -> TaskFigures:
    return TaskFigures(
        name=name,
        classes=3,
        n_test=10,
        zero_shot=30.0,
        zero_shot_interval=(10.0, 60.0),
        expert=90.0,
        expert_interval=(60.0, 98.0),
        fused={"signed": fused},
        fused_interval={"signed": (50.0, 99.0)},
        kept={"signed": KeptFigures(96.0, 0.03)},
        frozen={"discriminant": 70.0},
        answered=fused,
        answered_interval=(50.0, 99.0),
        held_out=HeldOut(40, 90.0, 80.0, Estimate(10.0, -2.0, 22.0), needed=False),
    )


CALIBRATION = Calibration(3.2, 10.4, (CalibrationBin(4, 40.0, 50.0), CalibrationBin(16, 95.0, 93.0)))
ANSWERS = Answers(
    rule="matched",
    known=85.0,
    unknown=84.0,
    seen=80.0,
    over_experts=Estimate(1.0, -1.0, 3.0),
    over_discriminant=Estimate(15.0, 11.0, 19.0),
    forwards={"task": 1.0, "seen": 1.01},
    one_request={"all_learned": OneRequest(6, 75.0, 20.0, None, None)},
    calibration={"task": CALIBRATION, "labels": CALIBRATION, "seen": CALIBRATION},
    abstention=Abstention(0.05, 4.8, 60.0, {"birds": 60.0}, 91.0, 55.0),
)


REPORT = RunReport(
    version=2,
    mode={"name": "signed", "bits": 2},
    base=BaseFigures("tiny", "a" * 64),
    tasks=(task("pets <b>", 80.0), task("food", 90.0)),
    loss_to_experts={"signed": Estimate(5.0, 1.0, 9.0)},
    kept={"signed": KeptFigures(96.0, 0.03)},
    metrics={"condu": Metrics(20.0, 60.0, 85.0), "zero_shot": Metrics(None, 30.0, 30.0)},
    matrices={
        "known": ((80.0, 20.0), (80.0, 90.0)),
        "continual_finetuning": ((80.0, 5.0), (40.0, 90.0)),
    },
    unseen=(
        UnseenFigures(
            name="birds",
            classes=4,
            n_test=8,
            zero_shot=50.0,
            zero_shot_interval=(20.0, 80.0),
            aggregated=62.5,
            aggregated_interval=(30.0, 86.0),
        ),
    ),
    unseen_gain=Estimate(12.5, -10.0, 35.0),
    answers=ANSWERS,
    routing_accuracy=75.0,
    bytes_per_task=3_400_000,
    shared_bytes=97_000_000,
    checkpoint_bytes=48_700_000,
    fidelity={"pets <b>": Fidelity(0.9, 0.4, 0.0), "food": Fidelity(None, None, 0.0)},
    removed=(),
    failed=(FailedTask("bad", "no <images>"),),
    seconds={"train": 12.3},
)


def test_a_paired_difference_is_the_mean_of_the_sets_and_narrows_with_agreement() -> None:
    expert = np.array([True, True, True, False])
    same = paired([(expert, expert)])
    assert same == Estimate(mean=0.0, low=0.0, high=0.0)
    fused = np.array([True, True, False, False])
    lost = paired([(expert, fused), (expert, expert)])
    assert lost is not None
    assert lost.mean == pytest.approx(12.5)
    assert lost.low < 12.5 < lost.high
    assert paired([(None, expert)]) is None


def test_metrics_of_a_gap_in_the_sessions_are_not_made_up() -> None:
    assert _metrics(np.array([[50.0, 60.0]])) == Metrics(transfer=None, avg=None, last=55.0)
    full = _metrics(np.array([[80.0, 20.0], [70.0, 90.0]]))
    assert full.transfer == pytest.approx(20.0)
    assert full.avg == pytest.approx((75 + 55) / 2)
    assert full.last == pytest.approx(80.0)


def test_every_table_has_its_rows_and_the_loss_is_told_with_its_interval() -> None:
    accuracy, company, answers, sessions, unseen, cost = report_tables(REPORT)
    assert "not needed" in [str(cell) for cell in company.columns[-1].cells]
    assert "+15.0 (+11.0 to +19.0)" in str(company.caption)
    assert "3.2 points (10.4 without temperatures)" in [str(cell) for cell in answers.columns[1].cells]
    assert accuracy.row_count == 3
    assert "signed +5.0 (+1.0 to +9.0)" in str(accuracy.caption)
    assert sessions.row_count == 2
    assert unseen.row_count == 2
    assert "+12.5" in str(unseen.caption)
    assert "3.4 MB" in [str(cell) for cell in cost.columns[1].cells]
    assert "0.900 (lowest 0.900, pets <b>)" in [str(cell) for cell in cost.columns[1].cells]


def test_the_page_holds_the_figures_and_escapes_what_users_named() -> None:
    pictures = heat_map(REPORT), reliability_diagram(REPORT)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    text = page(REPORT, *pictures)
    assert "pets &lt;b&gt;" in text
    assert "no &lt;images&gt;" in text
    assert "<b>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_an_expert_whose_weights_are_gone_leaves_its_cell_empty_and_no_mean_is_made_up() -> None:
    gone = replace(REPORT.tasks[0], expert=None, expert_interval=None)
    report = replace(REPORT, tasks=(gone, REPORT.tasks[1]), loss_to_experts={"signed": None})
    accuracy = report_tables(report)[0]
    experts = list(next(column for column in accuracy.columns if column.header == "expert").cells)
    assert experts == ["–", "90.0 (60–98)", "–"]
    assert "signed unknown" in str(accuracy.caption)
    assert "90.0 (60–98)" in page(report, b"", b"")


class Elements(HTMLParser):
    """The names of a page's elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_reach_the_page_as_text() -> None:
    attack = "\"><script>alert('x')</script>&amp;{{ 7 * 7 }}"
    report = replace(
        REPORT,
        mode={"name": attack},
        base=BaseFigures(attack, "a" * 64),
        tasks=(task(attack, 80.0), task("food", 90.0)),
        loss_to_experts={"signed": Estimate(5.0, 1.0, 9.0)},
        unseen=(replace(REPORT.unseen[0], name=attack),),
        failed=(FailedTask(attack, attack),),
        served=(ServedAnswer(attack, "seen", attack, attack, False, 0.5, (attack, attack)),),
    )
    found = Elements(page(report, b"", b""))
    assert "script" not in found.names
    assert found.text.count(attack) == 13, "mode (2), base, task (2), never-trained, failure (2), answer (5)"


def test_a_page_says_nothing_of_failures_and_answers_that_there_are_not() -> None:
    text = page(replace(REPORT, failed=(), served=()), b"", b"")
    assert "Failed tasks" not in text
    assert "Answers over HTTP" not in text


def test_modes_stand_in_the_order_of_the_report() -> None:
    names = ("last", "first", "signed")
    fused = dict.fromkeys(names, 50.0)
    report = replace(
        REPORT,
        tasks=tuple(replace(one, fused=fused) for one in REPORT.tasks),
        loss_to_experts=dict.fromkeys(names),
    )
    headers = [str(column.header) for column in report_tables(report)[0].columns]
    assert headers[-4:] == ["last", "first", "signed", "answered"]
