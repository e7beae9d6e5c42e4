"""A report as one HTML file: figures inside, nothing loaded from elsewhere, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; border-bottom: 1px solid #8886; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption { font-size: 0.9rem; }
img { width: 100%; min-width: 40rem; height: auto; background: #fff; border-radius: 4px; }
td, th { white-space: nowrap; } td code { white-space: normal; }
pre { overflow-x: auto; font-size: 0.8rem; padding: 0.8rem; border: 1px solid #8886; }
code { overflow-wrap: anywhere; }
.warning { border-left: 4px solid #c60; padding-left: 0.8rem; }
"""


def render_html(
    title: str,
    *,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    warnings: Iterable[str],
    figures: Iterable[tuple[str, Path]],
    summary: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Return the page; `header` and `rows` are the table of errors, figures are PNG files."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        '<div class="wide"><table><thead>',
        _row(header, "th"),
        "</thead><tbody>",
        *(_row(row, "td") for row in rows),
        "</tbody></table></div>",
    ]
    for caption, path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        lines.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    lines += [
        f"<h2>Data</h2><pre>{escape(chr(10).join(summary))}</pre>",
        '<h2>Run</h2><div class="wide"><table>',
        *(
            f"<tr><th>{escape(str(k))}</th><td><code>{escape(str(v).strip('`'))}</code></td></tr>"
            for k, v in facts.items()
        ),
        "</table></div></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str], tag: str) -> str:
    """The first two columns are words, the others numbers."""
    kinds = ["" if k < 2 else ' class="number"' for k in range(len(cells))]
    inner = (f"<{tag}{k}>{escape(cell)}</{tag}>" for k, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(inner)}</tr>"
