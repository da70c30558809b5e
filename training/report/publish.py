"""Show a diagnosis, and write it into the run folder as JSON and figures."""

import json
from typing import Any

from rich.console import Console

from worldmodel.training.logging.logger import MEDIA_FOLDER
from worldmodel.training.report.diagnose import Diagnosis
from worldmodel.training.report.diagnosis_report import show, to_json
from worldmodel.training.run.weights import write_text_atomic


def publish(diagnosis: Diagnosis) -> dict[str, Any]:
    """Show a diagnosis, write it to `media/` in the run folder, and return its JSON."""
    console, media = Console(highlight=False), diagnosis.subject.folder / MEDIA_FOLDER
    found = to_json(diagnosis)
    show(diagnosis, found["verdicts"], console)
    write_text_atomic(media / "diagnosis.json", json.dumps(found, indent=1) + "\n")
    written = ["diagnosis.json"]
    try:
        from worldmodel.training.report.diagnosis_plots import draw
    except ImportError:
        console.print("No figures without matplotlib: pip install 'worldmodel\\[plot]'")
    else:
        written += draw(diagnosis, found["verdicts"], media)
    console.print(f"written to {media}: {', '.join(written)}", markup=False, soft_wrap=True)
    return found
