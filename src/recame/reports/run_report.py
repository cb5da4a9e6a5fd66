"""The content of a report as plain values, from which page, Markdown and JSON are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recame.contracts import Predictions
from recame.decisions.outcome import Outcome
from recame.files import records
from recame.label_space import LabelSpace
from recame.metrics.calibration import reliability_bins
from recame.metrics.comparison import Comparison, compare_predictions
from recame.metrics.disagreement import Disagreement, expert_disagreement
from recame.metrics.evaluation import Evaluation
from recame.reports.evidence import Evidence
from recame.reports.judgement import Sentence, interpret

REPORT_SCHEMA = 1


class Setting(NamedTuple):
    """A setting that differs from its default.

    Attributes:
        name: for example `model.num_experts`.
        value: of the run.
        default: of the package; `auto` was decided before training.
    """

    name: str
    value: Any
    default: Any


@dataclass(frozen=True)
class RunFacts:
    """How a run was made.

    Attributes:
        name: of the run.
        split: that is evaluated.
        data: what the run was trained from.
        source: where the evaluated images are described; empty if unknown.
        settings: section -> setting -> value, all of them.
        changed: those that differ from the package's defaults.
        facts: (what, value) in words: seed, fingerprint, versions, time, hardware.
        reasons: why settings were chosen as they were, if the run recorded it.
        commands: that make the run and this report again.
        history: one row per epoch; empty if the run kept none.
        phases: `val_balanced_accuracy` by phase, and which was `kept`; may be empty.
        product_column: of the predictions' table.
    """

    name: str
    split: str
    data: str = ""
    source: str = ""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: tuple[Setting, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    reasons: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    phases: dict[str, Any] = field(default_factory=dict)
    product_column: str = "product"


_UNTUNED = (
    "The time of the training was too short to fine-tune the network: only its classifier is "
    "trained. A longer time budget may do better."
)


@dataclass(frozen=True)
class Baseline:
    """Another run's predictions of the same split.

    Attributes:
        name: of the run.
        predictions: with labels.
        label_space: their classes.
        path: of the run's folder, for the command that makes the report again.
    """

    name: str
    predictions: Predictions
    label_space: LabelSpace
    path: str = ""


@dataclass(frozen=True)
class RunReport:
    """The content of the report of one run on one split.

    Attributes:
        facts: how the run was made.
        evaluation: its numbers.
        predictions: of the split.
        label_space: its classes.
        evidence: the parts that need the model and the images.
        bins: of the reliability diagram.
        comparison: with the baseline; None without one.
        disagreement: of the experts; None with one expert.
        outcome: results of the run's decisions on the images; None if it has no decisions.
        lead: the summary in two or three sentences.
        findings: sentences with a level, most important first.
    """

    facts: RunFacts
    evaluation: Evaluation
    predictions: Predictions
    label_space: LabelSpace
    evidence: Evidence
    bins: pd.DataFrame
    comparison: Comparison | None
    disagreement: Disagreement | None
    outcome: Outcome | None
    lead: str
    findings: tuple[Sentence, ...]

    @property
    def confusions(self) -> pd.DataFrame:
        """Return the confusions as `true, called, images, share`, most images first."""
        counts, names = self.evaluation.confusion, np.array(self.evaluation.names, dtype=object)
        rows, columns = np.nonzero(counts * ~np.eye(len(counts), dtype=np.bool_))
        table = pd.DataFrame({"true": names[rows], "called": names[columns]})
        table["images"] = counts[rows, columns]
        table["share"] = table["images"] / counts.sum(1)[rows]
        return table.sort_values(["images", "share"], ascending=False, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as values for JSON; pictures and settings' text are left out."""
        facts, evidence, counts = self.facts, self.evidence, self.evaluation.confusion
        evaluation = self.evaluation.to_dict()
        del evaluation[
            "confusion"
        ]  # too large for thousands of classes; `confusions` has the filled cells
        return {
            "schema": REPORT_SCHEMA,
            "run": facts.name,
            "split": facts.split,
            "judgement": self.lead,
            "findings": [finding._asdict() for finding in self.findings],
            "evaluation": evaluation,
            "confusion": {
                "classes": list(self.evaluation.names),
                "cells": np.column_stack([*np.nonzero(counts), counts[counts > 0]]).tolist(),
            },
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "experts": None if self.disagreement is None else self.disagreement.to_dict(),
            "decisions": None if self.outcome is None else self.outcome.to_dict(),
            "reliability": records(self.bins),
            "num_mistakes": evidence.num_mistakes,
            "worst_mistakes": [mistake.to_dict() for mistake in evidence.mistakes],
            "gates": [layer.to_dict() for layer in evidence.gates],
            "remarks": list(evidence.remarks),
            "made": {
                "data": facts.data,
                "source": facts.source,
                "commands": list(facts.commands),
                "settings": facts.settings,
                "reasons": list(facts.reasons),
                "phases": facts.phases,
                "facts": dict(facts.facts),
            },
        }


def build_report(
    facts: RunFacts,
    evaluation: Evaluation,
    predictions: Predictions,
    label_space: LabelSpace,
    evidence: Evidence,
    *,
    baseline: Baseline | None = None,
    outcome: Outcome | None = None,
    seed: int = 0,
) -> RunReport:
    """Put a report together.

    Args:
        facts: how the run was made.
        evaluation: of the predictions.
        predictions: of the split.
        label_space: the run's classes.
        evidence: of `gather_evidence`.
        baseline: another run to compare with.
        outcome: of the run's decisions.
        seed: of the resampling.
    """
    comparison = None
    if baseline is not None:
        comparison = compare_predictions(
            predictions,
            baseline.predictions,
            label_space,
            baseline.label_space,
            name=baseline.name,
            tail=evaluation.tail_classes,
            seed=seed,
            confidence=evaluation.confidence,
        )
    disagreement = expert_disagreement(
        predictions.expert_probabilities,
        predictions.probabilities,
        predictions.target,
        label_space,
        seed=seed,
    )
    bins = reliability_bins(predictions.probabilities, predictions.target)
    lead, findings = interpret(evaluation, label_space, bins, comparison, disagreement)
    if any(reason.startswith("finetune.enabled = False") for reason in facts.reasons):
        findings.insert(0, Sentence("warn", _UNTUNED))
    return RunReport(
        facts,
        evaluation,
        predictions,
        label_space,
        evidence,
        bins,
        comparison,
        disagreement,
        outcome,
        lead,
        tuple(findings),
    )
