"""Pages in a real browser: everything is there, nothing is broken, and it fits."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from alignkit.commands.inspect import run
from alignkit.evaluate.compare_page import write_page
from alignkit.evaluate.comparison import Answer, Column, Comparison
from alignkit.evaluate.statistics import win_rate
from alignkit.launch import compose_job
from alignkit.pages.report import REPORT, write_report
from alignkit.runs.directory import Run
from alignkit.runs.given import Given
from alignkit.stages.sft.data import view

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

# What a page says of itself, in its title; the tests add it, the pages have no script.
SIZE = (
    "<script>addEventListener('load', () => { const n = document.querySelectorAll('section').length; "
    "document.title = JSON.stringify([n, document.documentElement.scrollWidth, innerWidth]); });</script>"
)
PROBE = (
    "<script>addEventListener('load', () => { const t = document.querySelectorAll('tr.prompt'); "
    "const r = t[0].querySelector('td').getBoundingClientRect(); document.title = JSON.stringify([t.length, "
    "document.documentElement.scrollWidth, innerWidth, getComputedStyle(t[0]).display, Math.round(r.width)]); "
    "});</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "some words that go on, and averyveryveryverylongwordwithoutanyspaceinitthatmustbebrokensomewhereorother "
    columns = []
    for name in ("runs/sft/the-first-of-them", "runs/ppo/another-one-with-a-long-name", "models/third"):
        answers = [Answer(words * (1 + i % 3), "stop" if i % 2 else "length", 9, -2.0, float(i)) for i in range(20)]
        wins = win_rate([1.0] * 20, [0.0] * 20) if columns else None
        columns.append(Column(name, answers, wins, [[-1.0, -2.0]] * 20))
    found = Comparison([f"p.txt:{i}" for i in range(20)], [words] * 20, columns, [["one", " two"]] * 20)
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, found)
    return path


def browse(page: Path, width: int, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        f"--window-size={width},900",
    ]
    return subprocess.run(
        [BROWSER, *words, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


def told(page: Path, tmp_path: Path, width: int, probe: str) -> list[str]:
    """What a probe finds of a page that is so many pixels wide."""
    # A headless window is at least 500 pixels wide, so the page is looked at through a frame of the width.
    probed = tmp_path / "probed.html"
    # In front of the page's own policy, which lets no script of others run.
    probed.write_text(page.read_text().replace("<!doctype html>", f"<!doctype html>{probe}", 1))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe style='width:{width}px;height:900px;border:0' src='probed.html'></iframe><script>"
        "addEventListener('load', () => setTimeout(() => document.title = frames[0].document.title, 300))</script>"
    )
    done = browse(frame, 1400, "--dump-dom", "--virtual-time-budget=3000", "--allow-file-access-from-files")
    found = re.search(r"<title>\[(.*)\]</title>", done.stdout)
    assert found, done.stdout[-500:]
    return found[1].split(",")


@pytest.mark.parametrize(("width", "display"), [(1280, "table-row"), (400, "block")])
def test_rows_are_there_and_fit_the_width(page: Path, tmp_path: Path, width: int, display: str) -> None:
    rows, scrolled, inner, shown, cell = told(page, tmp_path, width, PROBE)
    assert (int(rows), int(inner), shown.strip('"')) == (20, width, display)
    assert int(scrolled) <= width
    assert int(cell) >= 200


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_inspect_fits_the_width(tmp_path: Path, width: int) -> None:
    folder = tmp_path / "folders_whose_names_have_no_space" / "in_which_a_line_could_end"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"instruction": "Say a.", "output": "a"}\n' * 3)
    shown = view(compose_job("sft", ["model=tiny_gpt2", f"data.path={folder}/rows.jsonl"]))
    run(shown, num_rows=2, html=tmp_path / "page.html", as_json=True, golden=None)
    sections, scrolled, inner = told(tmp_path / "page.html", tmp_path, width, SIZE)
    assert (int(sections), int(inner)) == (4, width)  # two rows, the table, the lengths
    assert int(scrolled) <= width


def test_the_console_says_nothing(page: Path) -> None:
    done = browse(page, 1280, "--dump-dom")
    assert done.stdout.count('class="prompt"') == 20
    assert "CONSOLE" not in done.stderr


HOSTILE = "</script><script>document.title = 'owned'</script><img src='x' onerror='document.title = 0'>"
# What the scripts of a report made of it, after clicks on the fourth column and with the mouse over the first curve.
DRAWN = """<script>addEventListener("load", () => setTimeout(() => {
  const all = (what) => [...document.querySelectorAll(what)], over = document.querySelector(".u-over");
  const canvas = document.querySelector("canvas"), area = over.getBoundingClientRect();
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const scores = () => all(".rolls tbody td:nth-child(4)").slice(0, 3).map((cell) => cell.textContent);
  const sort = () => document.querySelector(".rolls th:nth-child(4) button").click();
  const before = scores();
  sort();
  const down = scores();
  sort();
  const up = scores();
  const at = { clientX: area.right - 1, clientY: area.top + 5, bubbles: true };
  over.dispatchEvent(new MouseEvent("mouseenter", at));
  over.dispatchEvent(new MouseEvent("mousemove", at));
  setTimeout(() => {
    document.title = JSON.stringify([all("canvas").length, pixels.some((part) => part), before, down, up,
      all("figure")[0].querySelectorAll(".u-value")[1].textContent, document.documentElement.scrollWidth, innerWidth,
      all("img").length, all("script[src]").length]);
  }, 100);
}, 100));</script>"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "ppo" / "a-run-with-a-name-that-is-long-and-has-no-space-where-a-line-could-end"
    run = Run(folder, "ppo", Given({"name": "a", "model": {"name": HOSTILE}}), result={"kept_step": 9})
    run.begin()
    metrics = [{"step": n, "objective/score": float(n), "objective/kl": n / 2, HOSTILE: 1.0} for n in range(1, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    row = {"prompt": HOSTILE, "completion": HOSTILE * 9, "scores": {}, "length": 9, "has_ended": False}
    scores = [3.0, None, 1.0, 2.0]
    rollouts = [row | {"step": n, "score": score, "kl": n / 3} for n, score in enumerate(scores)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}) + "\n")
    run.write("finished")
    write_report(folder)
    return folder / REPORT


@pytest.mark.parametrize("width", [1280, 400])
def test_a_report_draws_its_curves_sorts_its_rollouts_and_fits(report: Path, tmp_path: Path, width: int) -> None:
    found = json.loads(f"[{','.join(told(report, tmp_path, width, DRAWN))}]")
    num_curves, is_painted, before, down, up, hovered, scrolled, inner, num_images, num_loaded = found
    assert (num_curves, is_painted) == (2, True)  # what else was measured is drawn when it is unfolded
    assert (before, down, up) == (["3", "–", "1"], ["3", "2", "1"], ["1", "2", "3"])  # no score comes last, either way
    assert hovered == "9"
    assert inner == width
    assert scrolled <= width
    assert (num_images, num_loaded) == (0, 0)


def test_what_a_model_says_runs_nowhere(report: Path) -> None:
    done = browse(report, 1280, "--dump-dom", "--virtual-time-budget=2000")
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    assert title[1].endswith("could-end")
    assert done.stdout.count("<canvas") == 2
    assert "CONSOLE" not in done.stderr  # nor was anything refused that tried to run


# The lines of the table, how many runs the first picture shows, whether it is painted, and each line leads to a run.
SWEPT = """<script>addEventListener("load", () => setTimeout(() => {
  const all = (what) => [...document.querySelectorAll(what)], canvas = document.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const led = all(".pipeline a").map((link) => document.querySelector(link.getAttribute("href")));
  document.title = JSON.stringify([all(".pipeline tr").length,
    all("figure")[0].querySelectorAll(".u-series").length - 1,
    pixels.some((part) => part), led.every((step) => step), document.documentElement.scrollWidth, innerWidth,
    all("img").length]);
}, 100));</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_a_sweep_lays_the_curves_of_its_runs_over_each_other(tmp_path: Path, width: int) -> None:
    folder, runs = tmp_path / "runs" / "sft" / "rates", []
    for number, rate in enumerate(("1e-3", "1e-2")):
        run = Run(folder / str(number), "sft", Given({"name": f"{number}"}), result={"kept_step": 9})
        run.begin()
        metrics = [{"step": n, "loss": 1 / (n + number)} for n in range(1, 10)]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
        run.write("finished")
        given = [f"train.learning_rate={rate}", f"model.name={HOSTILE}"]
        runs.append({"folder": str(run.folder), "overrides": given, "value": 0.1 + number, "problem": None})
    (folder / "multirun.yaml").write_text("{}\n")
    record = {"figure": "train_loss", "best": runs[0]["folder"], "runs": runs}
    (folder / "sweep.json").write_text(json.dumps(record))
    write_report(folder)
    found = json.loads(f"[{','.join(told(folder / REPORT, tmp_path, width, SWEPT))}]")
    num_lines, num_laid, is_painted, leads, scrolled, inner, num_images = found
    assert (num_lines, num_laid, is_painted, leads) == (2, 2, True, True)
    assert inner == width
    assert scrolled <= width
    assert num_images == 0
