"""The stage `report`: an evaluation to one page that a person reads, one file that a program reads, and a model card.

Light: what does the work is imported inside `report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

MAX_WORST_ERRORS = 200


@dataclass(kw_only=True)
class ReportConfig(StageConfig):
    """Settings of `llmkit report`."""

    evaluation: str = option(role="artefact")
    """Directory with the result of `llmkit evaluate`. Everything it was made from is found from there."""

    title: str | None = None
    """Heading of the page and name of the model on its card; none makes one from the task and the data set."""

    worst_errors: int = 20
    """Number of wrong predictions shown with their text, the most confident first; 0 to 200."""

    def problems(self) -> Iterable[str]:
        if not 0 <= self.worst_errors <= MAX_WORST_ERRORS:
            yield f"worst_errors is {self.worst_errors}; it must be 0 to {MAX_WORST_ERRORS} (the page stays readable)"


def report(config: ReportConfig, workspace: Workspace) -> dict[str, Any]:
    """Write `report.html`, `report.json` and, where the model is a result of ours, a publishable `model/`.

    Returns:
        The headline metrics and the size of the page, for the manifest.

    Raises:
        ArtefactError: the evaluation is not there, or its files are not those that its manifest describes.
        DataError: its metrics or predictions lack what a report needs.
    """
    from llmkit.pipeline.artefact import write_synced
    from llmkit.reports import card, facts, page
    from llmkit.resources import display

    told = facts.gather(config.evaluation, config.title, config.worst_errors)
    published = card.publish(told, workspace.directory / "model") if told.model.directory else None
    html = page.render(told, published)
    write_synced(workspace.directory / "report.html", html)
    write_synced(workspace.directory / "report.json", page.as_json(told))

    # The runner renames `<name>.partial` to `<name>` when the stage is complete; people want the lasting path.
    lasting = workspace.directory.with_name(workspace.directory.name.removesuffix(".partial"))
    workspace.say(f"report: {display(lasting / 'report.html')}")
    if published:
        workspace.say(f"report: the model and its card, ready to be shared: {display(lasting / 'model')}")
    else:
        workspace.say(f"report: no model/ was written: {told.model.absent}")
    for notice in told.notices:
        workspace.say(f"report: note: {notice}")
    headline = {score.key: score.value for score in told.headline if score.value is not None}
    return {**headline, "n": told.n, "html_bytes": len(html.encode())}
