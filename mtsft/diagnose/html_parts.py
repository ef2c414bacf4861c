"""What pages have in common: their colours, text of files made fit for HTML, and the policy that they are under.

What people wrote is data: it is escaped, and a page's own policy lets nothing run and nothing style but what stands in
it, known by its hash (https://www.w3.org/TR/CSP3/).
"""

import base64
import hashlib
import html
import json
from typing import Any

from mtsft.diagnose.token_view import visible

PALETTE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --line: #d0d7de; --hit: #ffe28a; --here: #ff9f43; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #dde3ea; --line: #3a424c; } }
"""


def escaped(text: object) -> str:
    """Text as HTML shows it, with the names of characters that would steer or reorder it."""
    return html.escape(visible(str(text)))


def value_text(value: Any) -> str:
    """The value of a config key, as JSON."""
    return json.dumps(value, ensure_ascii=False)


def content_policy(style: str, script: str = "") -> str:
    """The Content-Security-Policy of a page whose one style and one script ("" for none) are these."""
    scripts = f"script-src {_hash(script)}; " if script else ""
    return f"default-src 'none'; style-src {_hash(style)}; {scripts}form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
