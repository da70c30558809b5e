"""Films of a run while it trains."""

from worldmodel.training.logging.logger import Logger, films_of
from worldmodel.training.logging.progress import Progress
from worldmodel.training.report.imagine import ImagineConfig, imagine
from worldmodel.training.run.run import Run


def film(run: Run, logger: Logger, progress: Progress, steps: int) -> None:
    """What the model foretells now, in moving pictures."""
    try:
        media = films_of(run.folder, steps)
        made = imagine(run, ImagineConfig(), media, note=lambda line: progress.note(f"{steps:>7} steps: {line}"))
    except Exception as error:  # of episodes that are still too short, a codec, a full disk: no reason to stop training
        progress.note(f"{steps:>7} steps: no videos, {error}")
        return
    logger.films([path for path in made if path.suffix == ".webm"], steps)
