"""Checks that every relative link of the documentation leads to a file, and every `#anchor` to a heading.

A link that breaks when a file moves is found here instead of by a reader. Links to other sites are not
followed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
IMAGE = re.compile(r"<img[^>]*\ssrc=\"([^\"]+)\"")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def main() -> int:
    """Print each broken link as ``file: target: reason``; 1 if there is one, else 0."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [complaint for page in pages for complaint in broken_links(page)]
    for complaint in broken:
        print(complaint)
    print(f"{len(pages)} pages, {len(broken)} broken links")
    return 1 if broken else 0


def broken_links(page: Path) -> list[str]:
    """What is wrong with the relative links of one page, one line each."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    complaints = []
    for target in [*LINK.findall(text), *IMAGE.findall(text)]:
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists():
            complaints.append(f"{page.relative_to(ROOT)}: {target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            complaints.append(f"{page.relative_to(ROOT)}: {target}: no such heading")
    return complaints


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and GitLab form them from the text."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).lower() for heading in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


if __name__ == "__main__":
    sys.exit(main())
