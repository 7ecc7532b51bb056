"""The report of a run: of one with all kinds of events, one that goes on, one that has only begun,
and of files with anything in them."""

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path

import lxml.etree as etree
import lxml.html
import pytest
from etils import epath
from hypothesis import example, given, settings
from hypothesis import strategies as st

from biomedlm_jax import report
from biomedlm_jax.claim import Claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.reports import charts, happened, page, record, sections, times
from biomedlm_jax.reports.charts import Curve
from tests.conftest import TINY, changed

HOSTILE = "<script>alert(1)</script>\u202e\x00 &amp; \"'"
BEGAN = 1_700_000_000.0
STEPS = 4000
RUN = changed(TINY, run__steps=STEPS, run__log_every=10, run__eval_every=200, run__save_every=500)
LAYERS = list(sections.LAYERS)


def train_lines(last: int, every: int = 10) -> list[dict]:
    draw, lines = random.Random(1), []
    for step in range(every, last + 1, every):
        loss = 2.4 + 6 * math.exp(-step / 300) + draw.gauss(0, 0.03)
        norms = {f"grad_norm/{name}": 0.3 / (1 + i) + 0.02 * draw.random()
                 for i, name in enumerate(LAYERS)}  # fmt: skip
        updates = {f"update_norm/{name}": 1e-3 / (1 + i) for i, name in enumerate(LAYERS)}
        lines.append(
            {"step": step, "loss": loss, "learning_rate": 3e-4 * min(1, step / 200),
             "grad_norm": 0.5 + 0.1 * draw.random(), "update_norm": 2e-3, "param_norm": 80 + step,
             "skipped": 0, "tokens_per_second": 51_000 + 900 * draw.gauss(0, 1),
             "tokens_per_second_per_device": 12_750, "mfu_6n": 0.38, "mfu_6n_12ldt": 0.41,
             "step_seconds": 2.0, "data_wait": 0.01, "save_stall": 0.005,
             "device_memory_bytes": 17_000_000_000, **norms, **updates}
        )  # fmt: skip
    return lines


def evaluation_lines(last: int, every: int = 200) -> list[dict]:
    def line(step: int) -> dict:
        bits = 0.9 + 1.5 * math.exp(-step / 300)
        years = {f"bits_per_byte/year_{2015 + n}": bits + 0.02 * n for n in range(8)}
        return {"step": step, "held_out_loss": 2.5 + 6 * math.exp(-step / 300),
                "bits_per_byte": bits, "bits_per_byte/abstract": bits - 0.05,
                "bits_per_byte/full_text": bits + 0.04, **years}  # fmt: skip

    return [line(step) for step in range(0, last + 1, every)]


def events() -> list[dict]:
    """2 s a step; killed at 1,730, the save at 1,500 damaged, so again from 1,000; preempted at
    2,500; to the end."""
    versions = {"python": "3.11.9", "jax": "0.10.2", "biomedlm-jax": "0.1.0"}
    start = {"event": "start", "processes": 2, "devices": 8, "device_kind": "TPU v5e",
             "mesh": {"data": 1, "fsdp": 8, "model": 1, "context": 1}, "versions": versions,
             "parameters": 2_700_000_000, "peak_flops": 197e12 * 8,
             "peak_source": HOSTILE}  # fmt: skip
    seconds = {"import": 4.0, "connect": 6.0, "data": 2.0, "restore": 8.0, "compile": 70.0,
               "first_step": 2.0, "total": 92.0}  # fmt: skip
    now, found = BEGAN, []

    def add(event: str, step: int, **values) -> None:
        found.append({"time": now, "event": event, "step": step, **values})

    def process(first: int, last: int) -> None:
        nonlocal now
        found.append({**start, "time": now + 15, "step": first})
        if not first:  # as the run does at step 0, within the time up to the first step
            now += 18
            add("evaluation", 0, seconds=1.0)
            now -= 18
        now += 92
        add("first_step", first + 1, seconds=seconds)
        for step in range(first + 10, last + 1, 10):
            now += 20
            if step % 200 == 0:
                now += 9
                add("evaluation", step, seconds=9.0)
            if step % 500 == 0:
                add("save", step, stall_seconds=3.0)
            if step == 800:
                add("spike", step, loss=9.1, mean=3.0, sigma=0.1,
                    documents=[f"PMID:{n}" for n in range(20)])  # fmt: skip
            if step == 2040:
                add("skipped", step, loss="nan", grad_norm="inf", documents=[HOSTILE])

    process(0, 1730)
    now += 400
    add("host_lost", 1730, host="worker-3", reason=HOSTILE)
    add("damaged", 1500, reason="piece 3 of params is cut", moved_to="checkpoints/damaged")
    process(1000, 2500)
    add("preempted", 2500)
    now += 600
    process(2500, STEPS)
    add("end", STEPS, goodput=0.73)
    return found


def samples() -> list[dict]:
    prompts = [("The patients were randomly assigned to receive", "PMID:31"),
               (f"Mutations of {HOSTILE}", "PMC:9")]  # fmt: skip
    return [
        {"step": step, "prompt": prompt, "text": f"a continuation made at {step}", "document": id}
        for step in range(0, STEPS + 1, 200)
        for prompt, id in prompts
    ]


def write_lines(file: Path, lines: list[dict], rest: str = "") -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


@pytest.fixture(scope="module")
def empty(tmp_path_factory, store) -> Path:
    """Settings and nothing else."""
    folder = tmp_path_factory.mktemp("begun")
    tokens = json.loads((store / "manifest.json").read_text())["splits"]["train"]["sha256"]
    claim = Claim(
        experiment=changed(RUN, data__store=str(store)),
        vocabulary_sha256="0" * 64,
        tokens_sha256=tokens,
    )
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(claim)))
    return folder


@pytest.fixture(scope="module")
def whole(empty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run<b>"
    shutil.copytree(empty, folder)
    write_lines(folder / "metrics.jsonl", train_lines(STEPS) + evaluation_lines(STEPS))
    write_lines(folder / "events.jsonl", events())
    write_lines(folder / "samples.jsonl", samples())
    return folder


def page_of(folder: Path) -> lxml.html.HtmlElement:
    return lxml.html.document_fromstring(report.write(epath.Path(folder)).read_text())


def words(root: lxml.html.HtmlElement) -> str:
    return " ".join(" ".join(root.itertext()).split())


def tiles(root: lxml.html.HtmlElement) -> dict[str, str]:
    found = root.xpath("//div[@class='figures']/div")
    return {tile[1].text: tile[0].text for tile in found}


def record_of(
    folder: Path, train: list[dict] = (), evaluations: list[dict] = (), events: list[dict] = ()
) -> record.Record:
    claim = record.read(epath.Path(folder)).claim
    return record.Record(
        workdir="run", claim=claim, train=list(train), evaluations=list(evaluations),
        events=list(events), samples=[], manifest=None, notes=[],
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(whole):
    return page_of(whole)


class TestPage:
    def test_headline(self, root):
        assert root.xpath("//h1")[0].text == "Run run<b>"
        assert f"Step {STEPS:,} of {STEPS:,} (100.0%), finished." in words(root)
        found = tiles(root)
        assert found["parameters"] == f"{RUN.model.parameters:,}"
        assert found["tokens seen"] == "1.024 M"
        assert found["training loss, last"] == f"{train_lines(STEPS)[-1]['loss']:.4f}"
        assert found["held-out bits per byte"] == "0.9000"
        assert found["MFU (6N + 12LdT), median"] == "41.0%"
        assert found["goodput"] == "73.0%"
        assert found["restarts"] == "2"

    def test_nothing_of_a_file_is_markup_and_nothing_comes_from_elsewhere(self, root):
        assert not root.xpath("//script | //link | //img | //iframe | //object | //b/b")
        for name in ("src", "href", "style", "onload", "onclick"):
            assert all(value.startswith("#") for value in root.xpath(f"//@{name}"))
        shown = "<script>alert(1)</script>\ufffd\ufffd &amp; \"'"
        assert words(root).count(shown) >= 4  # spike's, skipped's and the host's, a prompt
        assert "\u202e" not in words(root)

    def test_every_link_has_its_section_and_every_section_something(self, root):
        anchors = [link.removeprefix("#") for link in root.xpath("//nav/a/@href")]
        assert anchors == root.xpath("//section/@id")
        assert len(set(root.xpath("//@id"))) == len(root.xpath("//@id"))
        for section in root.xpath("//section"):
            assert len(section) > 1, section.get("id")

    def test_curves(self, root):
        names = [" ".join(x.text_content().split()) for x in root.xpath("//figcaption")]
        assert "Loss, nats per token" in names
        assert set(sections.LAYERS.values()) <= set(names)
        assert "Bits per byte by year, at step 4,000" in names
        labels = root.xpath("//*[@role='img']/@aria-label")
        assert any(
            "restarts at 2 steps; spikes at 1 steps; left out at 1 steps" in x for x in labels
        )
        assert "2015: 0.9 bits per byte" in " ".join(labels)

    def test_events(self, root):
        section = words(root.xpath("//section[@id='events']")[0])
        assert "PMID:0, PMID:1, PMID:2" in section
        assert "and 12 more" in section
        assert (
            "restart 8 TPU v5e, processes: 2; at least 600 steps before it were not kept" in section
        )
        assert "2023-11-14 22:13:35 0m00s 0 start" in section
        assert "moved_to: checkpoints/damaged" in section
        assert "update left out loss: nan; grad_norm: inf" in section
        assert "Saves and evaluations (" in section

    def test_continuations_by_step(self, root):
        section = root.xpath("//section[@id='continuations']")[0]
        assert len(section.xpath(".//blockquote")) == 2
        first = section.xpath("div[@class='wide']")[0].xpath(".//td[1]/text()")
        assert first == ["0", "800", "1,600", "2,400", "3,200", "4,000"]
        assert "All 21 steps" in words(section)

    def test_settings_environment_and_data(self, root, store):
        settings = words(root.xpath("//section[@id='settings']")[0])
        for name in ("peak_lr 0.003", "eval_every 200", "attention auto"):
            assert name in settings
        environment = words(root.xpath("//section[@id='environment']")[0])
        assert "jax 0.10.2" in environment
        assert "data 1, fsdp 8, model 1, context 1" in environment
        data = words(root.xpath("//section[@id='data']")[0])
        assert "The training tokens of the store still are those" in data
        assert str(store) in data


class TestTimes:
    def test_all_time_has_its_place(self, whole):
        found = record.read(epath.Path(whole))
        parts = times.budget(found)
        assert sum(parts.values()) == pytest.approx(found.events[-1]["time"] - BEGAN)
        # 2 s a step, but for those of the first step of a process, which is counted apart.
        seconds = 2 * (STEPS - 1)
        assert parts[times.WAITING] == pytest.approx(0.01 * seconds, rel=0.01)
        assert parts[times.TRAINING] == pytest.approx(0.985 * seconds, rel=0.01)
        assert parts[times.COMPILING] == 3 * 70
        assert parts[times.STARTING] == 3 * 22 - 1
        assert parts[times.EVALUATION] == 20 * 9 + 1  # none of those that were done twice
        assert parts[times.SAVES] == 8 * 3
        # 73 reports and 3 evaluations after the save at 1,000, 400 s and 600 s of nothing
        assert parts[times.LOST] == 73 * 20 + 3 * 9 + 400 + 600
        assert times.lost_steps(found) == {1: 600, 2: 0}

    def test_goodput_is_computed_where_the_run_tells_none(self, whole):
        found = record.read(epath.Path(whole))
        events = [event for event in found.events if event["event"] != "end"]
        found = dataclasses.replace(found, events=events)
        parts = times.budget(found)
        assert times.goodput(found) == parts[times.TRAINING] / sum(parts.values())

    def test_a_start_of_a_run_that_has_ended_loses_nothing(self, whole):
        found = record.read(epath.Path(whole))
        later = {**found.events[0], "time": BEGAN + 1e6, "step": STEPS}
        again = dataclasses.replace(found, events=[*found.events, later])
        assert times.budget(again) == pytest.approx(times.budget(found))

    def test_without_events_nothing_is_known(self, empty):
        found = record_of(empty, train_lines(100))
        assert times.budget(found) is None
        assert times.goodput(found) is None


class TestIncomplete:
    def test_a_run_that_goes_on(self, empty, tmp_path):
        folder = shutil.copytree(empty, tmp_path / "run")
        write_lines(folder / "metrics.jsonl", train_lines(600), '{"step": 610, "lo')
        write_lines(folder / "events.jsonl", events()[:3], '{"time": 17')
        root = page_of(folder)
        assert "Step 600 of 4,000 (15.0%), not finished." in words(root)
        assert tiles(root)["held-out bits per byte"] == "not known"
        assert tiles(root)["restarts"] == "0"
        summary = words(root.xpath("//section[@id='summary']")[0])
        assert "samples.jsonl is not there: no continuations." in summary
        assert "damaged" not in summary
        assert "Nothing was evaluated." in words(root)

    def test_lines_that_are_damaged_are_counted(self, empty, tmp_path):
        folder = shutil.copytree(empty, tmp_path / "run")
        lines = [json.dumps(line) for line in train_lines(100)]
        wrong = ['{"step": 1', "[]", '{"loss": 3}', '{"step": -1}', '{"step": "1"}', "\x00" * 9]
        (folder / "metrics.jsonl").write_text("\n".join([*lines[:5], *wrong, *lines[5:]]) + "\n")
        assert "metrics.jsonl: 6 lines are damaged and left out." in words(page_of(folder))
        assert len(record.read(epath.Path(folder)).train) == len(lines)

    def test_steps_that_were_done_twice_count_once(self, empty, tmp_path):
        folder = shutil.copytree(empty, tmp_path / "run")
        again = [{**line, "loss": 1.0} for line in train_lines(100)]
        write_lines(folder / "metrics.jsonl", train_lines(100) + again)
        assert {line["loss"] for line in record.read(epath.Path(folder)).train} == {1.0}

    def test_a_run_that_has_only_begun(self, empty, tmp_path):
        output = tmp_path / "page.html"
        report.main(str(empty), str(output))
        found = words(lxml.html.document_fromstring(output.read_text()))
        assert "Nothing is known of its progress; 4,000 steps are planned." in found
        for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl"):
            assert f"{name} is not there" in found
        assert [file.name for file in tmp_path.iterdir()] == ["page.html"]

    def test_a_store_that_is_gone_or_another(self, empty, tmp_path):
        def shown(manifest: str) -> str:
            (tmp_path / "manifest.json").write_text(manifest)
            return words(page_of(folder))

        folder = shutil.copytree(empty, tmp_path / "run")
        claim = json.loads((folder / "config.json").read_text())
        claim["experiment"]["data"]["store"] = str(tmp_path)
        (folder / "config.json").write_text(json.dumps(claim))
        gone = words(page_of(folder))
        assert "The token store is not reachable" in gone
        assert claim["tokens_sha256"] in gone
        other = shown('{"splits": {"train": {"tokens": "many", "sha256": 3}, "x": []}}')
        assert "The training tokens of the store are NOT those" in other
        assert "is damaged: no data card" in shown("{")
        assert "is no manifest of a token store" in shown("[]")

    def test_what_is_no_run_is_refused(self, tmp_path, empty):
        with pytest.raises(UserError, match="is no folder of a run"):
            report.main(str(tmp_path), None)
        assert not list(tmp_path.iterdir())
        with pytest.raises(UserError, match=r"--output=.* is a folder; name a file"):
            report.main(str(empty), str(tmp_path))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = [*train_lines(10)[0], *evaluation_lines(0)[0], "seconds", "documents", "versions", "mesh"]
KINDS = [*record.PROGRESS, "damaged", "host_lost", HOSTILE]


@given(
    metrics=st.lists(st.dictionaries(st.sampled_from(NAMES), ANY, max_size=6), max_size=5),
    events=st.lists(
        st.tuples(st.sampled_from(KINDS), st.floats(0, 1e20), st.integers(0, 10**12),
                  st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4)), max_size=6
    ),
    samples=st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=3),
)  # fmt: skip
@settings(max_examples=30)
def test_whatever_is_in_the_files_there_is_a_page(run_folder, metrics, events, samples):
    lines = [{"step": 1, "loss": 2.0} | line for line in metrics]
    write_lines(run_folder / "metrics.jsonl", lines + [{"held_out_loss": 2, **x} for x in lines])
    made = [{**more, "event": kind, "time": time, "step": step}
            for kind, time, step, more in events]  # fmt: skip
    write_lines(run_folder / "events.jsonl", made)
    texts = [dict(zip(("prompt", "text", "document"), x, strict=True), step=1) for x in samples]
    write_lines(run_folder / "samples.jsonl", texts)
    root = page_of(run_folder)
    assert len(root.xpath("//section")) == 10
    assert "nan%" not in etree.tostring(root.xpath("//main")[0], encoding="unicode")


@pytest.fixture(scope="module")
def run_folder(empty, tmp_path_factory):
    return shutil.copytree(empty, tmp_path_factory.mktemp("any") / "run")


class TestDrawings:
    @given(
        st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30), st.booleans(), st.integers(0, 99)
    )
    @example([1.0, 2.2e-311], True, 0)
    def test_a_curve_stays_in_its_plot(self, values, logarithmic, end):
        points = [(step, value) for step, value in enumerate(values)]
        drawing = charts.plot([Curve("x", points, 0, dots=True)], end, logarithmic=logarithmic)
        (path,) = drawing.xpath(".//path/@d")
        places = [place.split() for place in path.split("M ")[1:]]
        assert len(places) == len(values)
        for x, y, *_ in places:
            assert 0 <= float(x) <= 1000
            assert 0 <= float(y) <= 240

    def test_long_curves_are_means_in_a_band_of_all(self):
        points = [(step, float(step % 2)) for step in range(10_000)]
        drawing = charts.plot([Curve("x", points, 0)], 10_000, height=100)
        (line,) = drawing.xpath(".//polyline/@points")
        heights = [float(pair.split(",")[1]) for pair in line.split()]
        assert len(heights) <= 400
        assert max(heights) - min(heights) < 5  # the means of many
        (band,) = drawing.xpath(".//polygon/@points")
        edges = {float(pair.split(",")[1]) for pair in band.split()}
        assert max(edges) - min(edges) > 80

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(0.0, "0"), (0.91337, "0.9134"), (3e-4, "3e-4"), (12340.4, "12,340"),
         (2.7e9, "2.7 B"), (-1.5e13, "-15 T"), (math.inf, "inf")],
    )  # fmt: skip
    def test_numbers(self, value, expected):
        assert charts.number(value) == expected

    def test_times_that_no_calendar_has(self):
        assert happened.when(BEGAN) == "2023-11-14 22:13:20"
        assert happened.when(1e20) == "1e+20"


def test_of_a_later_start_only_what_changed_is_shown(empty):
    start = {"event": "start", "time": 1.0, "step": 0, "devices": 8, "versions": {"jax": "1.0"}}
    other = {**start, "step": 20, "versions": {"jax": "1.1"}}
    made = record_of(empty, events=[start, {**start, "step": 10}, other])
    made_page = page.page("t", "", [page.Section("x", sections.environment(made))])
    shown = words(lxml.html.document_fromstring(made_page))
    assert "Started at step 0, 10 what value devices 8 versions jax 1.0" in shown
    assert "Started at step 20, what was not as before what value versions jax 1.1" in shown
