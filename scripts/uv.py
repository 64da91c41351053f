"""Run uv with the index, proxy and certificates that pip is configured for: `python scripts/uv.py pip install numpy`.

uv reads neither pip.conf nor pip's variables. What is configured for uv itself, as UV_DEFAULT_INDEX, stays as it is.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

# What pip calls it: the variable that uv reads, and what stands between several values there.
NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", None),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", None),
    "timeout": ("UV_HTTP_TIMEOUT", None),
    "proxy": ("ALL_PROXY", None),
    "cert": ("SSL_CERT_FILE", None),
    "client-cert": ("SSL_CLIENT_CERT", None),
}
# As pip does: the best version of all indexes, the system's certificates, the Python that is there.
ALWAYS = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
SECTIONS = ("global", "install", ":env:")  # each overrides those before it


def settings(listing):
    """{name: value} of what `pip config list` prints, as lines like `global.index-url='https://...'`."""
    lines = [line.partition("=") for line in listing.splitlines()]
    found = {tuple(key.rsplit(".", 1)): ast.literal_eval(value) for key, _, value in lines}
    return {name: value for wanted in SECTIONS for (section, name), value in found.items() if section == wanted}


def variables(listing):
    """The variables that tell uv what `pip config list` prints."""
    uv_variables = {}
    for name, value in settings(listing).items():
        if name in NAMES:
            variable, between = NAMES[name]
            uv_variables[variable] = between.join(value.split()) if between else value
    return ALWAYS | uv_variables


def main():
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    offline = ["--no-index"] if settings(listing).get("no-index") in ("1", "true", "yes", "on") else []
    uv = Path(sys.executable).with_name("uv")
    os.execve(uv, [uv, *sys.argv[1:], *offline], variables(listing) | os.environ)


if __name__ == "__main__":
    main()
