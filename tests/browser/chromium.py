"""Find a Chromium that playwright can drive, or install one: `python tests/browser/chromium.py`, which `make test` does.

Taken in this order: $LORA_KIT_CHROMIUM, Chromium or Chrome on the PATH, playwright's own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = """A browser is missing: the explorer is tested in Chromium. Do one of these, then `make test` again:
  Debian:            sudo apt-get install chromium
  Fedora, Arch:      install the package chromium
  Ubuntu, macOS:     install Google Chrome, or run
                     .venv/bin/playwright install --with-deps chromium
  anywhere:          set LORA_KIT_CHROMIUM to the path of a Chromium or Chrome"""
APT = (
    "apt-get update -qq && DEBIAN_FRONTEND=noninteractive "
    "apt-get install -qq -y -o=Dpkg::Use-Pty=0 --no-install-recommends chromium"
)
PLAYWRIGHT = f"'{sys.executable}' -m playwright install chromium"


def find():
    """The path of a Chromium. FileNotFoundError, which says what to install, where there is none."""
    if named := os.environ.get("LORA_KIT_CHROMIUM"):
        if not shutil.which(named):
            raise FileNotFoundError(f"LORA_KIT_CHROMIUM is {named!r}, and that is no program")
        return shutil.which(named)
    if on_path := next(filter(None, map(shutil.which, NAMES)), None):
        return on_path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if not Path(own).is_file():
        raise FileNotFoundError(MISSING)
    return own


def main():
    with_apt = shutil.which("apt-get") and os.geteuid() == 0
    for installer in [*([APT] if with_apt else []), PLAYWRIGHT, None]:
        try:
            path = find()
            break
        except FileNotFoundError as error:
            if installer is None or "LORA_KIT_CHROMIUM" in os.environ:
                return str(error)
            print(f"No Chromium here yet; trying: {installer}", flush=True)
            subprocess.run(installer, shell=True, stdout=subprocess.DEVNULL)
    version = subprocess.run([path, "--version"], capture_output=True, text=True)
    if version.returncode:  # as where a library is missing
        return f"{path} doesn't start:\n{version.stderr}\n{MISSING}"
    print(f"The tests' browser: {path}, {version.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
