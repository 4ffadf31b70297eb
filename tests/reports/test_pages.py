"""Test reports in a real browser, at the width of a phone and of a laptop."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import astralora as al
from astralora.devices.testing import CheckResult
from astralora.reports import calibration_report, check_report, run_report
from astralora.simulators import KINDS, Impairments, device_factory
from astralora.training import RunConfig, RunFolder, train

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# Widths in CSS pixels of a small phone and of a laptop.
WIDTHS = {"phone": 390, "desktop": 1280}

# This script lets the page report whether it overflows, whether all pictures are there, and what it has fetched.
PROBE_SCRIPT = """
<script>
window.addEventListener("load", () => {
  const page = document.documentElement, pictures = [...document.images];
  const answers = {
    width: window.innerWidth,
    overflow: page.scrollWidth - page.clientWidth,
    pictures: pictures.length,
    broken: pictures.filter(each => !each.complete || each.naturalWidth < 300).length,
    widest: Math.max(0, ...pictures.map(each => each.getBoundingClientRect().right)),
    fetched: performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length,
    first: document.body.children[1].className,
    top: document.body.children[1].getBoundingClientRect().top,
  };
  const element = document.createElement("pre");
  element.id = "answers"; element.textContent = JSON.stringify(answers);
  document.body.append(element);
});
</script>
"""


def make_impairments(**more: Any) -> Any:
    return Impairments(output_levels=255, input_levels=255, control_levels=64, output_noise_fraction=0.01, **more)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    chip = device_factory(KINDS["slm"])(8, 8, impairments=make_impairments(dead_output_fraction=1 / 8))
    checks = [CheckResult("spec", True), CheckResult("noise", False, "twice what <b>the spec</b> says " * 20)]
    folder = RunFolder(tmp_path_factory.mktemp("run") / "r", RunConfig.load(None, {"epochs": 1, "batch_size": 400}))
    run = train(folder, report=False)
    wrong = al.calibrate(
        device_factory(KINDS["slm"])(4, 4, impairments=make_impairments()),
        al.Budget(programs=12),
        model="matvec",
        steps=20,
    )
    return {
        "check": check_report(checks, al.characterise(chip, al.Budget(programs=40, vectors=2000))),
        "calibration": calibration_report(
            al.calibrate(
                device_factory(KINDS["slm"])(8, 8, impairments=make_impairments()), al.Budget(programs=24), steps=60
            )
        ),
        "no fit": calibration_report(wrong),
        "run": run_report(run, folder.config.to_toml())["report.html"],
    }


NAMES = ("check", "calibration", "no fit", "run")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_needs_nothing_from_elsewhere(name: str, pages: dict[str, bytes]) -> None:
    page = pages[name].decode()
    assert not re.search(r"(?:src|href)\s*=\s*\"(?!data:)", page)
    assert "<script" not in page
    assert "<b>" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("screen", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_its_screen(name: str, screen: str, pages: dict[str, bytes], tmp_path: Path) -> None:
    # Use a frame for a phone's width, since a browser's own window is at least about 500 pixels wide.
    inner = pages[name].decode().replace("</body>", PROBE_SCRIPT + "</body>")
    (tmp_path / "page.html").write_text(inner)
    frame = f'<iframe id="it" src="page.html" style="border:0;width:{WIDTHS[screen]}px;height:900px"></iframe>'
    relay = """<script>window.onload = () => setTimeout(() => { document.body.append(
      document.getElementById("it").contentDocument.getElementById("answers").cloneNode(true)); }, 100);</script>"""
    (tmp_path / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}{relay}</body>")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-background-networking", "--disable-gpu",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
         "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="answers">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    answers = json.loads(html.unescape(found[1]))
    assert answers["width"] == WIDTHS[screen]
    assert answers["overflow"] == 0, "the page scrolls sideways"
    assert answers["pictures"] >= (2 if name == "no fit" else 4)
    assert answers["broken"] == 0
    assert answers["widest"] <= WIDTHS[screen]
    assert answers["fetched"] == 0
    assert "verdict" in answers["first"]
    assert answers["top"] < 300, "the verdict comes first"
