import base64
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from eval.metrics import RATES, measure
from eval.report import ROWS, percent, print_table, reliability, write_report
from migr.errors import InputError

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x00\x1b[31m\u202e\ud800&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Collects what a browser would see: tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def metrics(seed=0, n=400, judge=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, n)
    answers = np.where(rng.random(n) < 0.7, labels, rng.integers(-1, 7, n))
    judgements = np.where(rng.random(n) < 0.8, answers, rng.integers(-1, 7, n))
    first, dominants = rng.integers(0, 2, n), rng.integers(0, 2, n)
    found = measure(labels, answers, judgements, CLASSES, first, dominants, resamples=50)
    found["judge"] = {"name": "lexicon", "accuracy": 0.912, "accuracy_ci95": [0.9, 0.93], "n": 700} if judge else None
    return found | {"settings": {"model": "runs/model", "split": "test"}}


def example(**changes):
    segments = [("audio", "The voice is harsh."), ("video", "The face is calm."), (None, "So it is anger.")]
    row = {"clip_id": "c1", "label": "angry", "answer": "angry", "judged": "happy", "dominant": "audio"}
    return {**row, "segments": segments, **changes}


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_says_every_figure_with_its_interval_and_denominator(tmp_path):
    found = metrics()
    write_report(tmp_path / "page.html", {"migr": found}, {"migr": [example()]})
    page = read(tmp_path / "page.html")
    text = page.text.replace("\u00a0", " ")
    for key, label, _ in ROWS:
        low, high = found[f"{key}_ci95"]
        figure = f"{100 * found[key]:.2f} % {100 * low:.1f} to {100 * high:.1f} n {found[f'{key}_n']}"
        assert label in text and figure in text
    assert {key for key, _, _ in ROWS} == set(RATES)
    for count in (found["n"], found["n_unparseable"], found["n_judge_failed"], *found["cells"].values()):
        assert str(count) in page.text
    assert "91.20" in page.text and "n 700" in page.text and "runs/model" in page.text
    classes = [attrs.get("class", "") for tag, attrs in page.tags if tag == "span"]
    assert classes.count("seg audio") == classes.count("seg video") == 2  # the legend and the example


def test_the_page_needs_nothing_from_outside_and_runs_nothing(tmp_path):
    write_report(tmp_path / "page.html", {"a": metrics(), "b": metrics(1)}, {"a": [example()]})
    page = read(tmp_path / "page.html")
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attrs in page.tags:
        assert not {"src", "href", "srcset"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
    assert "url(" not in (text := (tmp_path / "page.html").read_text()) and "@import" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_hostile_text_is_shown_and_never_obeyed(tmp_path):
    found = metrics()
    found["settings"] = {HOSTILE: HOSTILE}
    found["judge"] = {"name": HOSTILE, "accuracy": None, "n": 0}
    found["per_class"] = {HOSTILE: found["per_class"]["sad"]}
    found["confusion"]["labels"][0] = found["confusion"]["answers"][0] = HOSTILE
    row = example(
        clip_id=HOSTILE,
        answer=HOSTILE,
        judged=HOSTILE,
        dominant=HOSTILE,
        segments=[("audio", HOSTILE), (HOSTILE, HOSTILE)],
    )
    write_report(tmp_path / "page.html", {HOSTILE: found, "b": found}, {HOSTILE: [row]}, title=HOSTILE, intro=HOSTILE)
    text = (tmp_path / "page.html").read_bytes().decode("utf-8")
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert('x')</script>" in page.text and "{{ 7*7 }}" in page.text
    assert not any(character in text for character in "\x00\x1b\u202e\ud800")


def test_a_megabyte_of_reasoning_is_cut_and_its_length_told(tmp_path):
    long = "<b>" * 350_000
    write_report(tmp_path / "page.html", {"migr": metrics()}, {"migr": [example(segments=[("video", long)])] * 40})
    text = (tmp_path / "page.html").read_text()
    assert len(text) < 600_000 and "<b><b>" not in text and "(1,050,000 characters)" in text
    assert text.count("<article>") == 30


def test_several_runs_stand_side_by_side_with_the_same_rows(tmp_path):
    runs = {"baseline": metrics(1), "migr": metrics(2)}
    write_report(tmp_path / "page.html", runs)
    page = read(tmp_path / "page.html")
    assert sum(tag == "tr" for tag, _ in page.tags) > len(ROWS)
    for found in runs.values():
        assert all(percent(found[key]) in "".join(page.words) for key in RATES)
    bars = [attrs["class"] for tag, attrs in page.tags if tag == "rect"]
    assert bars.count("run0") == bars.count("run1") == 2 * len(CLASSES) + 3 * 2


def test_bars_and_whiskers_stay_inside_their_drawing(tmp_path):
    write_report(tmp_path / "page.html", {"a": metrics(3, n=12), "b": metrics(4, n=12)})
    page = read(tmp_path / "page.html")
    ends = [float(attrs["x"]) + float(attrs["width"]) for tag, attrs in page.tags if tag == "rect"]
    ends += [float(attrs["d"].split("H")[1]) for tag, attrs in page.tags if attrs.get("class") == "whisker"]
    assert ends and max(ends) <= 422.1


def test_images_are_embedded_whole_and_others_are_refused(tmp_path):
    image, drawing = tmp_path / "plot.png", tmp_path / "plot.svg"
    image.write_bytes(png(64))
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    write_report(tmp_path / "page.html", {"a": metrics()}, sections=[("Gates", [image, str(drawing)])])
    sources = [attrs["src"] for tag, attrs in read(tmp_path / "page.html").tags if tag == "img"]
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == image.read_bytes()
    assert base64.b64decode(sources[1].removeprefix("data:image/svg+xml;base64,")) == drawing.read_bytes()
    with pytest.raises(InputError, match=r"missing\.png: no such image"):
        write_report(tmp_path / "page.html", {"a": metrics()}, sections=[("Gates", [tmp_path / "missing.png"])])


def test_a_run_without_judge_importances_or_rates_still_has_a_page_and_a_table(tmp_path, capsys):
    bare = measure([0, 1], [-1, -1], [-1, -1], CLASSES)
    write_report(tmp_path / "page.html", {"bare": bare})
    page = read(tmp_path / "page.html")
    assert "no judge" in page.text and "dominant modality</h2>" not in (tmp_path / "page.html").read_text()
    print_table({"bare": bare})
    printed = capsys.readouterr().out
    assert "–" in printed and "no judge" in printed


def test_the_terminal_table_has_the_rows_of_the_page_and_takes_no_markup_from_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    found = metrics()
    print_table({"[red]baseline[/red]": found, "migr": found})
    printed = capsys.readouterr().out
    assert "[red]baseline[/red]" in printed
    assert all(label in printed and percent(found[key]) in printed for key, label, _ in ROWS)
    assert f"n\u00a0{found['inconsistent_among_correct_n']}" in printed


def test_a_judge_that_was_not_measured_says_so():
    assert reliability({"name": "lexicon", "accuracy": None, "n": 0}) == "lexicon: reliability not measured"
    assert reliability(None) == "no judge"
    assert (
        reliability({"name": "lexicon", "accuracy": 0.5, "n": 10}).replace("\u00a0", " ") == "lexicon: 50.00 % (n 10)"
    )


def png(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    noise = np.random.default_rng(0).integers(0, 256, (side, side + 1), np.uint8)
    noise[:, 0] = 0  # no filter
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(noise.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
