"""Pages in a real browser: everything is there, nothing is broken, and it fits."""

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
    probed.write_text(page.read_text() + probe)
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
