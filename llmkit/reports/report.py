"""The stage `report`: a result, or several side by side, to one page that a person reads, one file that a program reads, a
Markdown text, and for an evaluation a model card.

Light: what does the work is imported inside `report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.errors import ArtefactError

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact
    from llmkit.pipeline.stage import Workspace

MAX_WORST_ERRORS = 200
MAX_RUNS = 12

_STAGES = ("evaluate", "finetune", "pretrain")
"""Those whose results have a report; of a pipeline's results the first of these that is there is taken."""


@dataclass(kw_only=True)
class ReportConfig(StageConfig):
    """Settings of `llmkit report`."""

    runs: list[str] = option(factory=list, role="artefact", made_by=_STAGES, positional=True)
    """Directories with the result of `llmkit evaluate`, `pretrain` or `finetune`, or of a pipeline, whose last evaluation is
    taken. Everything it was made from is found from there. Several give one page that shows them side by side."""

    evaluation: str | None = option(None, role="artefact", made_by=_STAGES)
    """The same for one result: the input that pipelines name."""

    title: str | None = None
    """Heading of the page and name of the model on its card; none makes one from the task and the data set."""

    worst_errors: int = 20
    """Number of wrong predictions that are shown with their text where scripts are off, the most confident first; 0 to 200."""

    def __post_init__(self) -> None:
        """A pipeline's directory stands for a result in it, and that one counts for the fingerprint."""
        self.runs = [_result_in(place) for place in self.runs]
        self.evaluation = _result_in(self.evaluation) if self.evaluation else None

    def problems(self) -> Iterable[str]:
        if bool(self.runs) == bool(self.evaluation):
            yield "runs: name the result to report on: `llmkit report RUN`, or several to set them side by side"
        for place in self.runs:
            if not _is_result(place) and (within := _pipelines_in(place)):
                yield f"runs: {place} is no result, it holds those of {', '.join(within)}: name one, as {place}/{within[0]}"
        if len(self.runs) > MAX_RUNS:
            yield f"runs: {len(self.runs)} are too many for one page; the most are {MAX_RUNS}"
        if not 0 <= self.worst_errors <= MAX_WORST_ERRORS:
            yield f"worst_errors is {self.worst_errors}; it must be 0 to {MAX_WORST_ERRORS} (the page stays readable)"


def _is_result(place: str) -> bool:
    from llmkit.pipeline.artefact import MANIFEST

    return (Path(place) / MANIFEST).exists()


def _pipelines_in(place: str) -> list[str]:
    """The names of the directories of pipelines in a directory, `runs` say."""
    from llmkit.pipeline.artefact import MANIFEST

    return sorted({manifest.parent.parent.name for manifest in Path(place).glob(f"*/*/{MANIFEST}")})


def _result_in(place: str) -> str:
    """The directory itself if it is a result, and else the last one in it that has a report; itself if there is none."""
    from llmkit.pipeline.artefact import MANIFEST, Artefact

    if _is_result(place):
        return place
    found = []
    for manifest in Path(place).glob(f"*/{MANIFEST}"):
        artefact = Artefact.peek(manifest.parent)
        if artefact is not None and artefact.manifest.stage in _STAGES:
            rank = -_STAGES.index(artefact.manifest.stage)
            found.append((rank, artefact.manifest.created, str(manifest.parent)))
    return max(found)[-1] if found else place


def report(config: ReportConfig, workspace: Workspace) -> dict[str, Any]:
    """Write `report.html`, `report.json`, `report.md` and, where the model of an evaluation is a result of ours, a publishable
    `model/`.

    Returns:
        The headline metrics and the size of the page, for the manifest.

    Raises:
        ArtefactError: a result is not there, or its files are not those that its manifest describes.
        DataError: the metrics or predictions of an evaluation lack what a report needs.
    """
    found = [_open(place) for place in config.runs or [config.evaluation or ""]]
    if len(found) > 1:
        headline = _side_by_side(found, config, workspace)
    elif found[0].manifest.stage == "evaluate":
        headline = _evaluation(found[0], config, workspace)
    else:
        headline = _training(found[0], config, workspace)
    return {**headline, "html_bytes": (workspace.directory / "report.html").stat().st_size}


def _open(place: str) -> Artefact:
    from llmkit.pipeline.artefact import Artefact

    artefact = Artefact.peek(Path(place))
    if artefact is None:
        raise ArtefactError(
            f"{place} holds no finished result of llmkit; make one with `llmkit evaluate` or `llmkit pretrain`"
        )
    if artefact.manifest.stage not in _STAGES:
        raise ArtefactError(
            f"{place} is a result of {artefact.manifest.stage!r}, which has no report; name one of {', '.join(_STAGES)}"
        )
    return Artefact.open(place, artefact.manifest.stage)


def _evaluation(artefact: Artefact, config: ReportConfig, workspace: Workspace) -> dict[str, Any]:
    from llmkit.reports import card, document, facts, page
    from llmkit.resources import display

    told = facts.gather(artefact, config.title, config.worst_errors)
    published = card.publish(told, workspace.directory / "model") if told.model.directory else None
    _write(workspace, page.render(told, published), page.as_json(told), document.of_evaluation(told), told.notices)
    if published:
        model = _lasting(workspace) / "model"
        workspace.say(f"report: the model and its card, ready to be shared: {display(model)}")
    else:
        workspace.say(f"report: no model/ was written: {told.model.absent}")
    return {**{score.key: score.value for score in told.headline if score.value is not None}, "n": told.n}


def _training(artefact: Artefact, config: ReportConfig, workspace: Workspace) -> dict[str, Any]:
    from llmkit.reports import document, page, training

    told = training.gather(artefact, config.title)
    _write(workspace, page.render_training(told), page.training_as_json(told), document.of_training(told), told.notices)
    return {score.key.replace(" ", "_"): score.value for score in told.scores}


def _side_by_side(artefacts: list[Artefact], config: ReportConfig, workspace: Workspace) -> dict[str, Any]:
    from llmkit.reports import document, page, side_by_side

    found = side_by_side.gather(artefacts, config.title)
    _write(workspace, page.render_runs(found), page.runs_as_json(found), document.of_runs(found), found.notices)
    workspace.say(f"report: {found.comparability}")
    return {"runs": len(found.runs)}


def _write(workspace: Workspace, html: str, json: str, markdown: str, notices: list[str]) -> None:
    from llmkit.pipeline.artefact import write_synced
    from llmkit.resources import display

    for name, text in (("report.html", html), ("report.json", json), ("report.md", markdown)):
        write_synced(workspace.directory / name, text)
    workspace.say(f"report: {display(_lasting(workspace) / 'report.html')}")
    for notice in notices:
        workspace.say(f"report: note: {notice}")


def _lasting(workspace: Workspace) -> Path:
    """The runner renames `<name>.partial` to `<name>` when the stage is complete; people want the lasting path."""
    return workspace.directory.with_name(workspace.directory.name.removesuffix(".partial"))
