"""The page in a real browser: headless Chromium opens it from disk."""

import json
import shutil
import time
from urllib.parse import quote

import numpy as np
import pytest
from chromium import PROGRAM, Chromium

from eval.figures.codes import MISSING
from eval.figures.metrics import measure
from eval.page.browser import CELLS, Run
from eval.report import write_page
from migr.files.records import read_jsonl
from migr.text.labels import DFEW, label_set

ATTACK = (
    "</script><script>window.pwned = 1; alert(1)</script><img src=x onerror='window.pwned = 1'>"
    "<!--<script>\u202e]]>&lt;b&gt;{{ 7*7 }}\x00\x07\x1b[31m\u2028\ud800${alert(1)}"
    "<iframe srcdoc='<script>alert(1)</script>'>"
)


@pytest.fixture(scope="module")
def chromium():
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium (as .ci/run does)")
    browser = Chromium()
    yield browser
    browser.close()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))  # ASCII: a lone surrogate can stand in a file this way


def row(name, label, answer, judged, first="The brow is low."):
    think = f"<video>{first}</video><audio>The voice trembles.</audio> So it is {judged}."
    response = f"<think>{think}</think><answer>{answer}</answer>"
    return {"clip_id": name, "label": label, "response": response, "answer": answer}, judged


def run(folder, name, rows, clips=None, importance=None):
    """A run whose files and figures are made of (prediction, what the judge reads) pairs."""
    write_jsonl(folder / f"{name}.jsonl", [prediction for prediction, _ in rows])
    judged = [{"clip_id": p["clip_id"], "judge": "planted", "emotion": emotion} for p, emotion in rows]
    write_jsonl(folder / f"{name}_judged.jsonl", judged)
    code = {emotion: i for i, emotion in enumerate(DFEW)}
    columns = [
        [code.get(value, MISSING) for value in values]
        for values in zip(*((p["label"], p["answer"], emotion) for p, emotion in rows), strict=True)
    ]
    metrics = measure(*columns, DFEW, resamples=50) | {"judge": {"name": "planted", "accuracy": 0.9, "n": 210}}
    files = (folder / f"{name}.jsonl", folder / f"{name}_judged.jsonl")
    return Run(name, metrics, label_set("dfew"), *files, importance, clips)


def outcomes(ids, seed):
    """Answers and judgements at random: (label, answer, judged) of each clip."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(ids):
        label = DFEW[i % 7]
        other = [str(rng.choice([e for e in DFEW if e != label])) for _ in range(2)]
        answer = [label, label, label, other[0], "maybe sad"][rng.choice(5, p=[0.5, 0.2, 0.1, 0.15, 0.05])]
        judged = [label, other[1], None][rng.choice(3, p=[0.7, 0.25, 0.05])]
        yield name, label, answer, judged


@pytest.fixture(scope="module")
def page(planted_run, tmp_path_factory):
    """Two runs on the planted clips; the page stands in another folder than the clips."""
    folder = tmp_path_factory.mktemp("page")
    ids = [clip["clip_id"] for clip in read_jsonl(planted_run.clips)]
    files = {"clips": planted_run.clips, "importance": planted_run.importance}
    first = run(folder, "baseline", [row(*facts) for facts in outcomes(ids, 0)], **files)
    second = run(folder, "migr", [row(*facts, first="The eyes shine.") for facts in outcomes(ids, 1)], **files)
    write_page(folder / "report.html", [first, second])
    return folder / "report.html"


@pytest.fixture(scope="module")
def cells(page):
    """The six cells' names of each clip in both runs, as the files say."""

    def of(name):
        judged = {r["clip_id"]: r["emotion"] for r in read_jsonl(page.with_name(f"{name}_judged.jsonl"))}
        for r in read_jsonl(page.with_name(f"{name}.jsonl")):
            emotion = judged[r["clip_id"]]
            reading = {r["label"]: "consistent", None: "not_judged"}.get(emotion, "inconsistent")
            answer = "right" if r["answer"] == r["label"] else "wrong"
            yield "unparseable" if r["answer"] not in DFEW else f"{answer}_{reading}"

    return list(zip(of("baseline"), of("migr"), strict=True))


def address(page, **state):
    return f"file://{quote(str(page))}#" + "&".join(f"{key}={quote(str(value))}" for key, value in state.items())


def count(browser):
    return int(browser.run("document.getElementById('count').textContent.split(' ')[0].replace(',', '')"))


def choose(browser, **values):
    """Set filters as a person does, and wait until they have been applied."""
    browser.run("document.getElementById('count').textContent = ''")
    browser.run(
        f"for (const [name, value] of Object.entries({json.dumps(values)})) {{"
        "const control = form.elements[name]; control.value = value;"
        "control.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    browser.wait("document.getElementById('count').textContent !== ''")
    return count(browser)


def test_it_opens_from_disk_without_an_error_or_a_request_to_the_network(chromium, page):
    chromium.open(address(page))
    assert chromium.run("!overview.hidden && document.getElementById('clips').hidden")
    chromium.run("document.getElementById('nav-clips').click()")
    chromium.wait("!document.getElementById('clips').hidden && video.readyState >= 1")
    assert count(chromium) == 42 and chromium.run("document.querySelectorAll('.row').length") > 5
    assert chromium.problems == []
    assert {request.split(":")[0] for request in chromium.requests} <= {"file", "data"}


def test_filters_leave_the_clips_that_the_files_say(chromium, page, cells, planted_run):
    chromium.open(address(page, view="clips"))
    for name in CELLS:
        assert choose(chromium, cell0=name) == sum(first == name for first, _ in cells)
    assert choose(chromium, cell0="", change="changed") == sum(first != second for first, second in cells)
    assert choose(chromium, change="unchanged") == sum(first == second for first, second in cells)
    both = sum(pair == ("right_consistent", "right_inconsistent") for pair in cells)
    assert choose(chromium, change="", cell0="right_consistent", cell1="right_inconsistent") == both
    assert choose(chromium, cell0="", cell1="", label="sad") == 6
    dominant = [r["dominant"] for r in read_jsonl(planted_run.importance)]
    assert choose(chromium, label="", dominant="audio") == dominant.count("audio") > 0
    chromium.run("document.querySelector('button[type=reset]').click()")
    chromium.wait("document.getElementById('count').textContent.startsWith('42 of')")


def test_evidence_that_a_clip_cannot_give_is_marked_and_can_be_filtered(chromium, tmp_path):
    rows = [row(name, "sad", "sad", "sad") for name in ("full", "silent")]
    clips = [{"clip_id": p["clip_id"], "path": "x.mp4", "label": "sad", "split": "test"} for p, _ in rows]
    write_jsonl(tmp_path / "clips.jsonl", [clip | {"has_audio": clip["clip_id"] == "full"} for clip in clips])
    made = run(tmp_path, "run", rows, clips=tmp_path / "clips.jsonl")
    made.metrics["n_absent_evidence"] = 1
    write_page(tmp_path / "report.html", [made])
    chromium.open(address(tmp_path / "report.html", view="clips"))
    assert chromium.run("[...document.querySelectorAll('.row')].map((r) => r.querySelectorAll('.claim').length)") == [
        0,
        1,
    ]
    assert choose(chromium, absent="1") == 1
    assert chromium.run("document.getElementById('name').textContent") == "silent"
    assert "not in the clip⚠ audio" in chromium.run("document.querySelector('.facts').textContent")
    chromium.open(address(tmp_path / "report.html"))
    chromium.run("[...document.querySelectorAll('.metrics a')].find((a) => a.href.includes('absent=1')).click()")
    chromium.wait("!document.getElementById('clips').hidden")
    assert count(chromium) == 1 and chromium.problems == []


def test_search_reads_the_reasoning_of_the_runs_that_are_shown(chromium, page):
    chromium.open(address(page, view="clips"))
    assert choose(chromium, q="EYES shine") == 42  # every word, in any case, in either run
    assert choose(chromium, run="0") == 0
    assert choose(chromium, run="1") == 42
    assert choose(chromium, run="", q="test-00003") == 1
    assert choose(chromium, q="no such words") == 0
    assert chromium.run("!none.hidden && detail.hidden && document.querySelectorAll('.row').length === 0")


def test_the_clip_plays_from_its_own_place(chromium, page, planted_run):
    chromium.open(address(page, view="clips", clip="test-00002"))
    source = chromium.run("video.src")
    assert source == (planted_run.clips.parent / "clips" / "test-00002.mp4").resolve().as_uri()
    chromium.wait("video.readyState >= 2")
    assert chromium.run("video.paused && video.videoWidth > 0 && video.duration > 0.5")
    chromium.press("p")
    chromium.wait("video.currentTime > 0.2")
    assert chromium.run(
        "video.webkitAudioDecodedByteCount > 0 && document.getElementById('trouble').textContent === ''"
    )
    chromium.press("j")
    chromium.wait("video.src.endsWith('test-00003.mp4') && video.readyState >= 1 && video.currentTime === 0")
    assert chromium.problems == []


def test_it_is_usable_by_keyboard_alone(chromium, page):
    chromium.open(address(page, view="clips"))
    place = "document.getElementById('place').textContent"
    active = "document.getElementById(list.getAttribute('aria-activedescendant'))"
    for key, expected in (("j", 2), ("j", 3), ("k", 2)):
        chromium.press(key)
        assert chromium.run(place) == f"{expected} of 42"
    chromium.press("ArrowDown")  # not in the list: the arrows belong to the page
    assert chromium.run(place) == "2 of 42"
    chromium.press("/")
    assert chromium.run("document.activeElement.name") == "q"
    chromium.write("jk voice")
    assert chromium.run(f"form.q.value === 'jk voice' && {place}.startsWith('2 ')")
    chromium.run("form.q.value = ''")
    chromium.press("Escape")
    assert chromium.run("document.activeElement.id") == "list"
    for key, expected in (("ArrowDown", 3), ("End", 42), ("ArrowUp", 41), ("Home", 1), ("ArrowUp", 1)):
        chromium.press(key)
        assert chromium.run(place) == f"{expected} of 42"
        assert chromium.run(f"{active}.getAttribute('aria-selected') === 'true'")
        row, box = (chromium.run(f"{node}.getBoundingClientRect().toJSON()") for node in (active, "list"))
        assert row["top"] >= box["top"] - 1 and row["bottom"] <= box["bottom"] + 1
    outline = "getComputedStyle(list).outlineStyle !== 'none' && getComputedStyle(list).outlineWidth !== '0px'"
    assert chromium.run(outline)  # the focus can be seen
    controls = "[...document.querySelectorAll('input, select, button, [role=listbox]')]"
    assert (
        chromium.run(f"{controls}.filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).length")
        == 0
    )


def test_two_runs_stand_side_by_side_and_the_overview_leads_to_what_changed(chromium, page, cells):
    chromium.open(address(page))
    link = "document.querySelector('.moves td:not(.own) a')"
    number = int(chromium.run(f"{link}.textContent"))
    chromium.run(f"{link}.click()")
    chromium.wait("!document.getElementById('clips').hidden")
    first, second = chromium.run("[form.cell0.value, form.cell1.value]")
    assert count(chromium) == number == sum(pair == (first, second) for pair in cells) and first != second
    shown = "[...document.querySelectorAll('#responses .response > .cell')].map((e) => e.className)"
    assert chromium.run(shown) == [f"cell {first}", f"cell {second}"]
    assert chromium.run("!changed.hidden && document.querySelectorAll('#responses .seg.video').length") == 2
    choose(chromium, run="1")
    assert chromium.run(shown) == [f"cell {second}"]
    link = chromium.run("location.href")
    chromium.open(link)  # the address holds the view
    assert chromium.run("[form.cell0.value, form.cell1.value, form.run.value]") == [first, second, "1"]
    assert count(chromium) == number


@pytest.mark.parametrize("width", [390, 320])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(chromium, page, width, dark):
    for view in ("overview", "clips"):
        chromium.open(address(page, view=view), width, 800, dark)
        assert chromium.run("document.documentElement.scrollWidth") <= width
        red = int(chromium.run("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
        assert red < 60 if dark else red > 200
    chromium.run("document.querySelectorAll('.row')[2].click()")
    chromium.wait("detail.getBoundingClientRect().top < 120")  # the clip comes into view
    assert chromium.problems == []


def test_hostile_text_stays_text(chromium, tmp_path):
    long = ATTACK + "<b>" * 350_000
    rows = [
        row(ATTACK, "sad", "sad", "angry", ATTACK),
        ({"clip_id": "long", "label": "sad", "response": long, "answer": None}, None),
        ({"clip_id": "raw", "label": "sad", "response": f"<think>{ATTACK}</think><answer>{ATTACK}</answer>"}, "sad"),
        row("right-to-left", "sad", "sad", "sad", "الوجه حزين. <b>‮"),
    ]
    rows[2][0]["answer"] = ATTACK
    (tmp_path / "x.mp4").write_bytes(b"no video")
    paths = ["x.mp4", "gone.mp4", "x.mp4", "x.mp4"]
    write_jsonl(
        tmp_path / "clips.jsonl",
        [
            {"clip_id": p["clip_id"], "path": path, "label": "sad", "split": "test", "transcript": ATTACK}
            for (p, _), path in zip(rows, paths, strict=True)
        ],
    )
    found = run(tmp_path, "hostile", rows, tmp_path / "clips.jsonl")
    found.metrics["settings"] = {ATTACK: ATTACK}
    found.metrics["judge"]["name"] = ATTACK
    write_page(tmp_path / "report.html", [found], title=ATTACK, intro=ATTACK)
    assert (tmp_path / "report.html").stat().st_size < 200_000  # the megabyte is cut, and its length told
    chromium.open(address(tmp_path / "report.html", view="clips"))
    for i in range(4):
        chromium.run(f"select({i})")
        assert chromium.run("document.querySelectorAll('script').length") == 2
        assert chromium.run("document.querySelectorAll('img, iframe, #clips b b').length") == 0
    assert chromium.run("window.pwned") is None
    chromium.run("select(0)")
    shown = chromium.run("detail.innerText")
    assert "</script><script>window.pwned = 1" in shown and "{{ 7*7 }}" in shown and "&lt;b&gt;" in shown
    assert not {"\x00", "\x07", "\x1b", "\u202e", "\ud800"} & set(shown)
    chromium.wait("document.getElementById('trouble').textContent.includes('cannot play')")
    chromium.run("select(1)")
    assert "1,050," in chromium.run("detail.innerText") and "gone.mp4" in chromium.run("detail.innerText")
    assert chromium.run("detail.scrollWidth <= detail.clientWidth")
    chromium.run("select(3)")
    assert chromium.run("getComputedStyle(detail).direction") == "ltr"
    assert choose(chromium, q="الوجه") == 1
    assert [problem for problem in chromium.problems if "ERR_FILE_NOT_FOUND" not in problem] == []
    # Even a script that got into the page would not run: the policy knows the page's own by hash.
    chromium.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned = 1'}))"
    )
    assert chromium.run("window.pwned") is None and "Content Security Policy" in chromium.problems[-1]


def test_copied_clips_move_with_the_page(chromium, page, planted_run, tmp_path):
    rows = [row(clip["clip_id"], "sad", "sad", "sad") for clip in read_jsonl(planted_run.clips)[:3]]
    (tmp_path / "here").mkdir()
    write_page(tmp_path / "here" / "page.html", [run(tmp_path, "a", rows, planted_run.clips)], copy_clips=True)
    shutil.move(tmp_path / "here", tmp_path / "the re #1 é%")
    chromium.open(address(tmp_path / "the re #1 é%" / "page.html", view="clips"))
    chromium.wait("video.readyState >= 2")
    assert "page_files/" in chromium.run("video.src") and chromium.problems == []
    assert len(list((tmp_path / "the re #1 é%" / "page_files").iterdir())) == 3


def test_five_thousand_clips_in_two_runs_stay_quick(chromium, tmp_path, record_property):
    ids = [f"clip-{i:05d}" for i in range(5000)]
    long = "The brow is low, and the mouth is drawn to one side. " * 8
    runs = [run(tmp_path, f"run{k}", [row(*facts, first=long) for facts in outcomes(ids, k)]) for k in range(2)]
    start = time.monotonic()
    write_page(tmp_path / "report.html", runs)
    made = time.monotonic() - start
    chromium.open(address(tmp_path / "report.html", view="clips"))
    loaded = chromium.run("Number(document.body.dataset.ready)")

    def timed(script):  # until the browser has drawn the result
        drawn = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        return chromium.run(
            f"(async () => {{ const t = performance.now(); {script}; await {drawn}; return performance.now() - t }})()"
        )

    filtered = timed("form.q.value = 'mouth trembles sad'; filter(null)")
    assert 0 < count(chromium) < 5000
    timed("form.q.value = ''; filter(null)")
    moved = timed("select(2500)")
    scrolled = timed("list.scrollTop = 4000 * ROW")
    figures = {"made": made, "loaded": loaded, "filtered": filtered, "moved": moved, "scrolled": scrolled}
    print({key: round(value, 2) for key, value in figures.items()}, (tmp_path / "report.html").stat().st_size)
    assert chromium.run("document.querySelectorAll('.row').length") < 60
    assert loaded < 6000 and max(filtered, moved, scrolled) < 1000  # tenths of that on a quiet machine
