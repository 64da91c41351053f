"""Find a Chromium that playwright can drive, or get one: `python tests/browser/chromium.py`, which `make test` does."""

import os
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAYWRIGHT = f"'{sys.executable}' -m playwright"
# Only root's commands change the system. That of playwright's own browser fails early where its download can't be reached.
FOR_ALL = (f"{PLAYWRIGHT} install chromium",)
FOR_ROOT = (
    f"{PLAYWRIGHT} install chromium && {PLAYWRIGHT} install-deps chromium",
    "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium",
)
MISSING = f"""The explorer is tested in Chromium, and none here starts. Do one of these, then `make test` again:
  install Chromium or Google Chrome; on Debian: sudo apt-get install chromium
  let playwright do it: {PLAYWRIGHT} install --with-deps chromium
  set LORA_KIT_CHROMIUM to the path of a Chromium or Chrome"""


def look():
    """The path of $LORA_KIT_CHROMIUM, else of a Chromium or Chrome on the PATH, else of playwright's own; None without."""
    if named := os.environ.get("LORA_KIT_CHROMIUM"):
        return shutil.which(named)
    if on_path := next(filter(None, map(shutil.which, NAMES)), None):
        return on_path
    with sync_playwright() as playwright:
        return shutil.which(playwright.chromium.executable_path)


def find():
    """What `look` finds. FileNotFoundError, which says what to install, where that is nothing."""
    if path := look():
        return path
    raise FileNotFoundError(MISSING)


def main():
    for command in FOR_ROOT if os.geteuid() == 0 else FOR_ALL:
        if look() or "LORA_KIT_CHROMIUM" in os.environ:
            break
        print(f"No Chromium here yet; trying: {command}", flush=True)
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            print("That failed:", done.stderr.strip().partition("\n")[0], flush=True)
    if not (path := look()):
        return MISSING
    version = subprocess.run([path, "--version"], capture_output=True, text=True)
    if version.returncode:  # as where a library is missing
        return f"{path} doesn't start:\n{version.stderr}\n{MISSING}"
    print(f"The tests' browser: {path}, {version.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
