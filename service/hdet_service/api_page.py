"""The API's description as one static page: nothing is fetched from anywhere, and no script runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --edge: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: 6px; }
details { border: 1px solid var(--edge); border-radius: 6px; margin: .5rem 0; }
summary { padding: .5rem .75rem; cursor: pointer; overflow-wrap: anywhere; }
details > div { padding: 0 .75rem .75rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--edge); overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
"""


def render_api_page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document."""
    info = document["info"]
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    about = {tag["name"]: tag["description"] for tag in document.get("tags", ())}
    ordered = [*(tag for tag in about if tag in by_tag), *(tag for tag in by_tag if tag not in about)]
    sections = "".join(
        f"<h2 id='{escape(tag)}'>{escape(tag)}</h2><p>{escape(about.get(tag, ''))}</p>{''.join(by_tag[tag])}"
        for tag in ordered
    )
    schemas = "".join(
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
        f"<div>{_json(schema)}</div></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    title = escape(f"{info['title']} {info['version']}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1>{_text(info.get('description', ''))}"
        "<p>As a file for tools: <a href='/openapi.json'>/openapi.json</a> (OpenAPI 3.1).</p>"
        f"{sections}<h2 id='schemas'>schemas</h2>{schemas}</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [_text(operation.get("description", ""))]
    parameters = operation.get("parameters", ())
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}"
            f"{', required' if p.get('required') else ''}</td>"
            f"<td>{_inline(p.get('description', ''))}</td></tr>"
            for p in parameters
        )
        parts.append(f"<h4>Parameters</h4><table>{rows}</table>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body: {escape(kind)}{_schema_link(content)}</h4>")
        if content.get("example") is not None:
            parts.append(_json(content["example"]))
    rows = "".join(_answer(status, answer) for status, answer in operation["responses"].items())
    parts.append(f"<h4>Answers</h4><table>{rows}</table>")
    return (
        f"<details><summary><span class='method'>{method.upper()}</span><code>{escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary><div>{''.join(parts)}</div></details>"
    )


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    content = answer.get("content", {})
    links = "".join(_schema_link(one) for one in content.values())
    return f"<tr><td><code>{escape(status)}</code></td><td>{_inline(answer['description'])}{links}</td></tr>"


def _schema_link(content: Mapping[str, Any]) -> str:
    name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
    return f" <a href='#{escape(name)}'>{escape(name)}</a>" if name else ""


def _text(text: str) -> str:
    """Paragraphs and lists of the little Markdown that descriptions use."""
    return "".join(_block(block.strip()) for block in text.split("\n\n") if block.strip())


def _block(block: str) -> str:
    if not block.startswith("* "):
        return f"<p>{_inline(block)}</p>"
    items = block.removeprefix("* ").split("\n* ")
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
