"""The verdict and the limits: sentences that must say the same on the page, on the card and in the JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmkit.reports import lineage, sections, words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told, Traced

# What the examples of the embedded data sets are, and what others are that they are not like.
_EMBEDDED = {
    "llmkit/reviews": ("reviews", "what customers write", "real reviews"),
    "llmkit/passages": ("passages and questions", "what people ask", "real questions"),
    "llmkit/pairs": ("sentence pairs", "what people write", "real texts"),
    "llmkit/instructions": ("conversations", "what people ask", "real requests"),
}

_ALIKE = "Texts that are only alike were not looked for."

_OF_HUNDRED, _UNBOUNDED = {"bleu", "chrf"}, {"ter", "mse", "mae", "perplexity", "bits_per_byte"}


def title(task: str, dataset: str) -> str:
    """The heading of a page that was given none."""
    named = task.replace("-", " ").replace("_", " ").capitalize()
    return f"{named} on {words.short(dataset)}" if dataset else named


def verdict(told: Told) -> str:
    """One sentence: how good, how sure, and how it stands against what is simpler."""
    where = f" of {words.short(told.dataset)}" if told.dataset else ""
    which = f"{told.split} example" if told.split else "example"
    start = f"On {words.count(told.n, which)}{where}"
    claims = []
    for score in told.headline:
        if score.value is None:
            continue
        level = f"{100 * told.interval:g}% interval "
        if score.name == "accuracy":
            spread = f" ({level}{words.percent(score.low)} to {words.percent(score.high)})" if score.low is not None else ""
            claims.append(f"{words.percent(score.value)} of the predictions are right{spread}")
        else:
            between = words.interval(score.low, score.high)
            spread = f" ({'' if claims else level}{between})" if between else ""
            claims.append(f"the {score.title} is {words.score(score.value)}{spread}")
    return f"{start}, {words.listing(claims) or 'no metric has a value'}; {_standing(told)}.{_warning(told)}{_leak(told)}"


def _warning(told: Told) -> str:
    """What makes the figures too good."""
    overlap = told.overlap
    if overlap is None or overlap.either == 0:
        return ""
    share = f"{words.count(overlap.either, 'example')} ({words.percent(overlap.either / told.n)})"
    rest = overlap.without
    if rest is None or rest.value is None:
        return f" Warning: the texts of all {share} had been met in training or validation."
    level = f"{100 * told.interval:g}% interval"
    if rest.name not in ("accuracy", "exact_match"):
        spread = f" ({level} {words.interval(rest.low, rest.high)})" if rest.low is not None else ""
        return (
            f" Warning: {share} had a text that had been met in training or validation; on the others {rest.title} is "
            f"{words.score(rest.value)}{spread}."
        )
    spread = f" ({level} {words.percent(rest.low)} to {words.percent(rest.high)})" if rest.low is not None else ""
    return (
        f" Warning: {share} had a text that had been met in training or validation; of the predictions for the others "
        f"{words.percent(rest.value)} are right{spread}."
    )


def _leak(told: Told) -> str:
    """The same, of what was met in part, or in pretraining."""
    found = told.record.get("leakage") or {}
    count = (found.get("contaminated") or {}).get("examples", 0)
    if count <= (told.overlap.either if told.overlap else 0):
        return ""
    share = f"{words.count(count, 'example')} ({words.percent(count / told.n)})"
    said = f" Warning: {share} {'shares' if count == 1 else 'share'} a run of words with what the model was trained on"
    if found.get("least_share"):
        said = f" Warning: {share} {'stands' if count == 1 else 'stand'} in what the model was trained on"
    rest = found["metrics"].get("without")
    if not rest:
        return f"{said}."
    named = words.metric_title(rest[0]["name"], rest[0]["average"])
    between = words.interval(rest[0]["low"], rest[0]["high"])
    spread = f" ({100 * told.interval:g}% interval {between})" if between else ""
    return f"{said}; on the others {named} is {words.score(rest[0]['value'])}{spread}."


def _standing(told: Told) -> str:
    if not told.baselines and not told.comparisons:
        return f"it was compared with no baseline{told.reason('baselines_left_out')}"
    names = list(dict.fromkeys([*(item.name for item in told.baselines), *(item.baseline for item in told.comparisons)]))
    groups: dict[str, list[str]] = {}
    mixed = []
    for name in names:
        mine = [item for item in told.comparisons if item.baseline == name]
        findings = list(dict.fromkeys(item.finding for item in mine)) or ["not tested"]
        if len(findings) == 1:
            groups.setdefault(findings[0], []).append(f"“{name}”")
        else:
            parts = [f"{item.finding} in {item.title}" for item in mine]
            mixed.append(f"mixed against “{name}” ({words.listing(parts)})")
    phrases = [
        f"{lead} {words.listing(groups[finding])}"
        for finding, lead in (
            ("better", "better than"),
            ("no clear difference", "not clearly different from"),
            ("worse", "worse than"),
            ("not tested", "not tested against"),
        )
        if finding in groups
    ]
    metrics = {item.title for item in told.comparisons}
    scope = f"in {metrics.pop()}, " if len(metrics) == 1 else ""
    return f"{scope}the model is {words.listing([*phrases, *mixed])}"


def limits(told: Told) -> Iterator[str]:
    """What the numbers do not show, said only where the data at hand supports it."""
    yield from _limits_of_size(told)
    yield from _limits_of_data(told)
    if told.seeds:
        count = len(told.seeds[0].values)
        yield (
            f"{count} models were evaluated, trained alike with other seeds. How far they differ is told by their standard "
            f"deviation, which so few do not tell exactly."
        )
    else:
        yield (
            "One trained model was evaluated. The intervals cover the choice of test examples, not the luck of one "
            "training; another seed gives another model."
        )
    if told.comparisons or told.classes:
        yield (
            "Each interval holds for itself. Among many of them some miss the true value, so the scores of single "
            "classes weigh less than those of the whole."
        )
    if "swaps" not in told.record:
        if "slices" in told.record:
            yield "Bias was not analysed: slices compare only the parts that the test set names, and no words were swapped."
        elif not _mentions(told, "bias|fairness|slice|group"):
            yield "Bias was not analysed: nothing here compares groups of people, dialects, topics or sources."
    if not told.baselines:
        yield "No baseline was measured: the figures do not show whether something simpler does as well."
    for _, module, found in sections.present(told):
        yield from module.limits(found)
    yield from limits_of_lineage(told)


def _limits_of_data(told: Told) -> Iterator[str]:
    if told.split and told.split != "test":
        yield (
            f"The examples are the {told.split} split. Where a split was also used to choose settings or a checkpoint, "
            "its figures are too good."
        )
    if told.dataset in _EMBEDDED:
        kind, others, real = _EMBEDDED[told.dataset]
        yield (
            f"The {kind} of {told.dataset} were written for llmkit by a few authors, in English and Chinese. They are "
            f"tidier and more alike than {others}, so do not expect the same figures on {real}."
        )
    elif told.dataset:
        yield (
            f"Nothing here says how the examples of {words.short(told.dataset)} were chosen and labelled. The figures "
            "hold for texts drawn in the same way and labelled by the same rules, and for no others."
        )
    if told.overlap is None and "leakage" not in told.record:
        reason = told.reason("overlap_unknown") or told.reason("leakage_left_out")
        yield f"Whether test texts also occur in the training data was not checked{reason}."
    elif told.overlap is not None:
        alike = "Those that share runs of words are told under Leakage." if "leakage" in told.record else _ALIKE
        yield (
            "Test texts were compared with training and validation texts for equality, letter case and white space aside. "
            f"{alike}"
        )


def limits_of_lineage(told: Traced) -> Iterator[str]:
    if told.model.node is None:
        yield (
            "The model is not a result of llmkit, so what it was trained on is not known here; the test texts may have "
            "been among it."
        )
    elif any(node.problem for node in told.nodes):
        yield "Part of the lineage can no longer be followed, so not every number leads back to its raw bytes."
    environments = [environment for _, environment in lineage.environments(told.nodes)]
    if any(str(environment.get("git_commit") or "").endswith("-dirty") for environment in environments):
        yield "Some stages ran from a checkout with uncommitted changes: its commit alone does not give their code."


def _limits_of_size(told: Told) -> Iterator[str]:
    spread = max(
        (
            (score.high - score.low) * (1 if score.name in _OF_HUNDRED else 100)
            for score in told.headline
            if score.low is not None and score.high is not None and score.name not in _UNBOUNDED
        ),
        default=None,
    )
    if told.n < 1000:
        wide = f" The intervals of its main figures are up to {spread:.0f} points wide." if spread else ""
        yield f"The test set is small: {words.count(told.n, 'example')}.{wide}"
    if told.record.get("repeated_texts"):
        yield (
            f"{words.count(told.record['repeated_texts'], 'example')} of the test set repeat the text of another one. The "
            f"intervals take all examples for independent, and are too narrow."
        )
    for label in told.absent:
        yield f"Class “{words.fit(label, 40)}” has no test example: how well it is recognised is not known."
    if told.task == "question-answering":  # HasAns and NoAns are parts of the test set, and no classes
        return
    few = [(row.support, row.label) for row in told.classes if row.support and row.support < 50]
    if few:
        support, label = min(few)
        many = f"{len(few)} classes have" if len(few) > 1 else f"Class “{words.fit(label, 40)}” has"
        least = f" (the least, “{words.fit(label, 40)}”, {support})" if len(few) > 1 else f" ({support})"
        yield f"{many} fewer than 50 test examples{least}; the scores of such a class are rough."


def _mentions(told: Told, pattern: str) -> bool:
    """Whether the evaluation recorded something of that name, so that its absence must not be claimed."""
    assert told.evaluation.artefact is not None
    keys = [*told.record, *(key for key, _ in words.flatten(told.evaluation.artefact.manifest.metrics))]
    return any(re.search(pattern, key, re.IGNORECASE) for key in keys)
