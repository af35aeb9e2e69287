"""The page's last parts: what was done, how it was measured, what could not be, and what the report cost."""

from __future__ import annotations

from lightning_compress.report.html_table import NUMBER, Cell, table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import significant
from lightning_compress.report.schema import Applied, Report
from lightning_compress.report.words import failures

_LOADERS = {
    "test": "the Trainer's test loader",
    "validation": "the Trainer's validation loader",
    "given": "the loader given",
}


def applied_section(report: Report) -> Markup:
    """What was done to the model, in plain words, with settings."""
    if not report.applied:
        return element("p", "No compression callback of this package ran.", class_="empty")
    return element("ol", *map(_applied, report.applied), class_="steps")


def method_section(report: Report) -> Markup:
    """Loader, examples, environment, and what a reader must know."""
    facts: dict[str, str] = {"dense model": report.baseline} if report.baseline else {}
    evaluation = report.evaluation
    if evaluation is None:
        facts["quality"] = "not measured"
    else:
        better = {True: "higher is better", False: "lower is better", None: "which way is better is not known"}
        facts["examples"] = f"{evaluation.examples:,}, from {_LOADERS.get(evaluation.loader, evaluation.loader)}"
        if evaluation.monitor is not None:
            facts["first metric"] = f"{evaluation.monitor} ({better[evaluation.higher_is_better]})"
    threads = sorted({entry.threads for entry in report.latency})
    if threads:
        facts["threads of the runtimes"] = ", ".join(map(str, threads))
    facts |= {name: str(value) for name, value in report.environment.items()}
    listed = [piece for name, value in facts.items() for piece in (element("dt", name), element("dd", value))]
    notes = [element("li", note) for note in report.notes]
    return join(
        [
            element("ul", *notes, class_="remarks") if notes else None,
            element("dl", *listed, class_="facts"),
        ]
    )


def failures_section(report: Report) -> Markup | None:
    """Measurements that failed, and why."""
    if not report.failures:
        return None
    rows = [[Cell(names), Cell(reason)] for names, reason in failures(report).items()]
    return table("", [Cell("measurements"), Cell("why", "text")], rows)


def cost_section(report: Report) -> Markup | None:
    """Seconds that the report itself took."""
    if not report.seconds:
        return None
    total = sum(report.seconds.values())
    ordered = sorted(report.seconds.items(), key=lambda item: -item[1])
    rows = [
        [Cell(name), Cell(f"{significant(seconds)} s", share=seconds / total if total else None)]
        for name, seconds in ordered
    ]
    lead = f"{significant(total)} seconds in all."
    return join([element("p", lead, class_="lead"), table("", [Cell("measurement"), Cell("seconds", NUMBER)], rows)])


def _applied(applied: Applied) -> Markup:
    settings = ", ".join(f"{name}={value!r}" for name, value in applied.settings.items())
    return element(
        "li",
        element("h3", applied.name),
        element("p", applied.in_words),
        element("p", element("code", settings), class_="settings") if settings else None,
    )
