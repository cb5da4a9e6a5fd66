"""Write what the docs generate from `recame.export.document`: the schema, the table of fields."""

from __future__ import annotations

import json
import re
from pathlib import Path

from recame.export.document import document_schema, field_table

DOCS = Path(__file__).parents[2] / "docs"
TABLE = re.compile(r"(<!-- fields -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def main() -> None:
    """Write both."""
    text = json.dumps(document_schema(), indent=1, ensure_ascii=False) + "\n"
    (DOCS / "bundle.schema.json").write_text(text, encoding="utf-8", newline="\n")
    page = DOCS / "bundle-format.md"
    told = page.read_text(encoding="utf-8")
    told = TABLE.sub(lambda found: found[1] + field_table() + found[2], told)
    page.write_text(told, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
