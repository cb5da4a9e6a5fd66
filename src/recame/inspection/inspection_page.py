"""An inspection as one HTML page: summary, headline numbers, and the sections of each check."""

from __future__ import annotations

from importlib.metadata import version
from itertools import chain
from pathlib import Path

from recame.inspection.check import Inspection, Section, SetFinding
from recame.inspection.checks.structure import Structure
from recame.names import counted
from recame.pages.render import render_page


def inspection_page(inspection: Inspection) -> str:
    """The whole page as an HTML text."""
    findings = inspection.findings()
    decoded = inspection.embedded is not None
    checks = sorted(
        (check for check in inspection.checks if decoded or not check.of_images),
        key=lambda check: check.place,
    )
    sections: dict[str, Section] = {}
    for section in chain.from_iterable(check.show() for check in checks):
        if (before := sections.setdefault(section.key, section)) is not section:
            before.blocks.extend(section.blocks)
    spent = ", ".join(f"{k} {v:.1f} s" for k, v in inspection.seconds.items() if v >= 0.1)
    return render_page(
        "recame.inspection",
        "inspection.html.j2",
        version=version("recame"),
        title=_name(inspection.source),
        eyebrow="Inspection of a data set, before training",
        subtitle=inspection.source,
        footer=f"recame {version('recame')}. Time: {spent or 'under a second'}.",
        contents=[("findings", "Findings")]
        + [(section.key, section.short or section.title) for section in sections.values()],
        lead=lead_sentences(inspection, findings),
        tiles=[tile for check in checks for tile in check.tiles()],
        findings=findings,
        sections=list(sections.values()),
    )


def lead_sentences(inspection: Inspection, findings: list[SetFinding]) -> str:
    """The summary: size of the data set, and what to correct before training."""
    audit = inspection.audit
    text = f"{counted(audit.num_images)} of {counted(len(audit.classes), 'class')}"
    if len(audit.classes) > 1:
        first, last = audit.classes.iloc[0], audit.classes.iloc[-1]
        text += (
            f", from {first['images']:,} ({first['class']}) to {last['images']:,} ({last['class']})"
        )
    bad, warn = (
        [_lower(finding.title) for finding in findings if finding.level == level]
        for level in ("bad", "warn")
    )
    verdict = "Nothing was found that speaks against training."
    if bad:
        verdict = f"Correct this first, as it makes figures wrong: {'; '.join(bad[:3])}."
    elif warn:
        verdict = f"Ready for training; look at this first: {warn[0]}."
    return f"{text}. {verdict}{inspection[Structure].lead()}"


def _lower(title: str) -> str:
    first = title.split(" ", 1)[0]
    return title[0].lower() + title[1:] if first.istitle() and first != "I" else title


def _name(source: str) -> str:
    path = Path(source)
    stem = path.stem if path.suffix.lower() in {".csv", ".parquet", ".pq"} else path.name
    name = path.parent.name if stem.lower() in {"manifest", "data", "index"} else stem
    return name or source
