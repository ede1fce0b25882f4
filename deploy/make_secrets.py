"""Makes the secrets of deploy/compose.yaml, once, as files in deploy/secrets/.

    python deploy/make_secrets.py

The standard library's alone, so that it runs before anything is installed. A secret that is there is kept:
to change one, delete its file and run this again. The folder is its owner's alone (0700), which is what
protects the files on this machine. They themselves are readable, because Compose mounts each as it is into
containers that run under another user.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"
OPERATOR = "hdet_operator_token"
METRICS = "hdet_metrics_token"


def make(folder: Path) -> list[str]:
    """Make what is missing in ``folder``; the names of what was made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    made = [
        name
        for name in ("ray_token", OPERATOR, METRICS, "grafana_admin_password")
        if _write_once(folder / name, secrets.token_hex(32))
    ]
    # What the controller reads: its first tokens, as lines of name, role and token.
    tokens = f"admin operator {_read(folder, OPERATOR)}\nprometheus metrics {_read(folder, METRICS)}\n"
    if _is_other(folder / "hdet_tokens", tokens):
        (folder / "hdet_tokens").write_text(tokens, encoding="ascii")
        (folder / "hdet_tokens").chmod(0o644)
        made.append("hdet_tokens")
    return made


def _write_once(path: Path, secret: str) -> bool:
    if path.exists():
        return False
    path.write_text(secret, encoding="ascii")
    path.chmod(0o644)
    return True


def _read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="ascii").strip()


def _is_other(path: Path, content: str) -> bool:
    return not path.exists() or path.read_text(encoding="ascii") != content


def main() -> int:
    """Entry of the command line."""
    made = make(FOLDER)
    print(f"{FOLDER}: made {', '.join(made)}" if made else f"{FOLDER}: all there")
    print(f"Yours is {OPERATOR}: export HDET_TOKEN=$(cat {FOLDER / OPERATOR})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
