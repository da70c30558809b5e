"""Videos of a run while it trains."""

from worldmodel.training.logging.logger import Logger, films_of
from worldmodel.training.logging.progress import Progress
from worldmodel.training.report.imagine import ImagineConfig, imagine
from worldmodel.training.run.run import Run


def film(run: Run, logger: Logger, progress: Progress, steps: int) -> None:
    """Make and log videos of what the model imagines now. An error is shown and does not end the training."""
    try:
        media = films_of(run.folder, steps)
        made = imagine(run, ImagineConfig(), media, note=lambda line: progress.note(f"{steps:>7} steps: {line}"))
    except Exception as error:  # episodes that are still too short, a missing codec, a full disk, ...
        progress.note(f"{steps:>7} steps: no videos were made: {error}")
        return
    logger.films([path for path in made if path.suffix == ".webm"], steps)
