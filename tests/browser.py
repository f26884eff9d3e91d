"""Open a page in headless Chromium, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)"),
    pytest.mark.slow,
]


def browse(address: str, profile: Path, *more: str) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser printed; no host but this one is found."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    ]
    done = subprocess.run(
        [*command, *more, "--dump-dom", address], capture_output=True, text=True, timeout=180, check=True
    )
    return done.stdout, done.stderr


def console(printed: str) -> list[str]:
    """The lines of the page's console."""
    return [line for line in printed.splitlines() if "CONSOLE" in line]
