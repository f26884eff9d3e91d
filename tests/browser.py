"""Open a page in headless Chromium, where there is one."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)"),
    pytest.mark.slow,
]

A4_PX = round((210 - 2 * 12) / 25.4 * 96)
"""CSS pixels between the margins of an upright A4 page."""

CUT_OFF = """
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const shown = Array.from(document.querySelectorAll("body *")).filter((box) => box.getClientRects().length);
  const beyond = (box) => box.getBoundingClientRect().right > width + 0.5 && !box.closest(".defs");
  const hides = (box) => getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth + 1;
  const cut = shown.filter((box) => beyond(box) || (hides(box) && !box.closest("svg")));
  const found = { width, shown: shown.length, cut: cut.map((box) => box.outerHTML.slice(0, 120)) };
  const answer = document.createElement("pre");
  answer.id = "on-paper";
  answer.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(answer);
});
"""


def browse(address: str, profile: Path, *more: str) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser printed; no host but this one is found."""
    done = _chromium(profile, *more, "--dump-dom", address)
    return done.stdout, done.stderr


def _chromium(profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    ]
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=180, check=True)


def cut_off(page: Path, folder: Path) -> list[str]:
    """Openings of the elements that an A4 page does not show whole, with the page's rules for print in force."""
    html = page.read_text("utf-8")
    assert "@media print {" in html
    html = html.replace("@media print {", "@media all {")
    html, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert found == 1, "its policy allows the unchanged style alone"
    driven = folder / "on-paper.html"
    driven.write_text(html.replace("</body>", f"<script>{CUT_OFF}</script></body>"), "utf-8")
    document, _ = browse(
        driven.as_uri(), folder / "profile", f"--window-size={A4_PX},1000", "--hide-scrollbars"
    )
    answer = re.search(r'<pre id="on-paper">([^<]*)</pre>', document)
    assert answer, "the driver did not finish"
    found = json.loads(base64.b64decode(answer[1]))
    assert found["width"] == A4_PX and found["shown"] > 20
    return list(found["cut"])


def pdf_pages(page: Path, folder: Path) -> int:
    """Pages of the PDF that the browser prints."""
    into = folder / "page.pdf"
    _chromium(folder / "profile", f"--print-to-pdf={into}", page.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b", into.read_bytes()))


def console(printed: str) -> list[str]:
    """The lines of the page's console."""
    return [line for line in printed.splitlines() if "CONSOLE" in line]
