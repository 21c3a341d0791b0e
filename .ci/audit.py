"""Look the installed packages up among the known vulnerabilities: `make audit`.

pip-audit passes over what it cannot look up and then reports nothing, so two things are added: every package must be
found, and the service must first show that it knows a vulnerability that there is.

Exit codes: 0 nothing is known against any package; 1 something is, or a package was not found; 75 not evaluated.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import requests

NOT_EVALUATED = 75  # sysexits: try again later
OWN = "binventory"
# Has had advisories for years.
KNOWN_BAD = "https://pypi.org/pypi/jinja2/2.10/json"
TIMEOUT_S = 15


def main() -> int:
    """Audit the environment that this runs in."""
    if (reason := why_not_evaluated()) is not None:
        print(f"not evaluated: the advisory service cannot be reached ({reason})", file=sys.stderr)
        return NOT_EVALUATED
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "installed.txt"
        requirements.write_text("\n".join(installed()))
        options = ["--no-deps", "--disable-pip", "--strict", "--progress-spinner=off", f"--timeout={TIMEOUT_S}"]
        command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), f"--cache-dir={folder}/cache", *options]
        return subprocess.run(command, check=False).returncode  # noqa: S603  nothing in it comes from outside


def installed() -> list[str]:
    """Return name==version of everything installed but this project; advisories know no local versions (+cpu)."""
    found = {dist.name.lower(): dist.version.partition("+")[0] for dist in metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != OWN)


def why_not_evaluated() -> str | None:
    """Ask for a package with known vulnerabilities; None when the service names them."""
    try:
        answer = requests.get(KNOWN_BAD, timeout=TIMEOUT_S)
        answer.raise_for_status()
        known = answer.json().get("vulnerabilities")
    except (requests.RequestException, AttributeError) as error:
        return " ".join(str(error).split())[:200]
    return None if known else f"{KNOWN_BAD} names no vulnerability, and there are some"


if __name__ == "__main__":
    sys.exit(main())
