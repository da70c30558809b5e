"""What reaches Weights & Biases of a run that was ended and went on: every row once, by its own uploader."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from worldmodel.training.logging.logger import Logger, LoggerConfig
from worldmodel.training.logging.wandb_run import finish_wandb, is_whole

PROJECT = {"id": "p", "name": "worldmodel", "entity": {"id": "e", "name": "me"}}
PATIENCE = 60  # seconds for an upload


class Service:
    """As much of the service as an upload asks for. What is kept of a run are the lines of its history."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *given: Any) -> None:
                pass

            def read(self) -> bytes:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(sent) if self.headers.get("Content-Encoding") == "gzip" else sent

            def answer(handler, data: Any) -> None:
                body = json.dumps(data).encode()
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def do_PUT(self) -> None:
                self.read()
                self.answer({})

            def do_POST(handler) -> None:
                sent = handler.read()
                if handler.path == "/graphql":
                    asked = json.loads(sent)
                    return handler.answer({"data": self.asked(asked["query"], asked.get("variables") or {})})
                if handler.path.endswith("/file_stream"):
                    self.stored(handler.path.split("/")[-2], json.loads(sent))
                handler.answer({})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def stored(self, run: str, sent: dict[str, Any]) -> None:
        """Lines take the place of those that begin at their offset."""
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
        if chunk:
            lines = self.lines.setdefault(run, [])
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]

    def asked(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or "x"
        lines = self.lines.get(name, [])
        bucket: dict[str, Any] = {"id": "x", "name": name, "displayName": "d", "config": "{}", "project": PROJECT}
        bucket |= {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"}
        bucket |= {"historyTail": json.dumps(lines[-1:]), "summaryMetrics": "{}", "wandbConfig": '{"t": 1}', "tags": []}
        if "CreateRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.url}/put/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            return {"model": {**PROJECT, "bucket": bucket if lines else None}}
        return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}

    def steps(self) -> list[tuple[int, int, float]]:
        """(number, environment steps, x) of every row of the one run there is."""
        (lines,) = self.lines.values()
        rows = map(json.loads, lines)
        return [(row["_step"], row["global_step"], row["x"]) for row in rows]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    wandb.teardown()  # it remembers the mode and the key of whoever came first
    service = Service()
    monkeypatch.setenv("WANDB_BASE_URL", service.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield service
    wandb.teardown()
    service.server.shutdown()
    service.server.server_close()


def upload(folder: Path) -> None:
    """What a user does to upload everything there is of a run."""
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    command += map(str, sorted(folder.glob("wandb/offline-run-*")))
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE, env=dict(os.environ))


def ended_and_gone_on(folder: Path, first: str, then: str) -> None:
    """Five rows, of which a checkpoint has seen three; the other two are made again, and a sixth after them."""
    logger = Logger(folder, LoggerConfig(wandb=first), {}, say=lambda line: None)  # type: ignore[arg-type]
    for step in (10, 20, 30):
        logger.log({"x": step + 0.5}, step)
    position = logger.position()
    for step in (40, 50):
        logger.log({"x": step + 0.5}, step)
    logger.close()
    logger = Logger(folder, LoggerConfig(wandb=then), {}, say=lambda line: None, since=position)  # type: ignore[arg-type]
    for step in (40, 50, 60):
        logger.log({"x": step + 0.5}, step)
    logger.close()


EVERY = [(number, 10 * (number + 1), 10 * (number + 1) + 0.5) for number in range(6)]


def test_an_offline_run_that_went_on_is_uploaded_once(service: Service, tmp_path: Path) -> None:
    ended_and_gone_on(tmp_path, "offline", "offline")
    assert len(list(tmp_path.glob("wandb/*offline-run-*"))) == 1
    upload(tmp_path)
    assert service.steps() == EVERY


@pytest.mark.slow
def test_what_was_uploaded_in_between_is_not_uploaded_twice(service: Service, tmp_path: Path) -> None:
    logger = Logger(tmp_path, LoggerConfig(wandb="offline"), {}, say=lambda line: None)
    logger.log({"x": 10.5}, 10)
    position = logger.position()
    logger.log({"x": 20.5}, 20)
    logger.close()
    upload(tmp_path)
    assert service.steps() == EVERY[:2]
    logger = Logger(tmp_path, LoggerConfig(wandb="offline"), {}, say=lambda line: None, since=position)
    for step in (20, 30, 40, 50, 60):
        logger.log({"x": step + 0.5}, step)
    logger.close()
    upload(tmp_path)
    assert service.steps() == EVERY


@pytest.mark.parametrize("first", ["online", "offline"])
def test_an_online_run_that_goes_on_gets_the_rows_that_it_lacks(service: Service, tmp_path: Path, first: str) -> None:
    """Online before, it has five of six; offline before, it has none."""
    ended_and_gone_on(tmp_path, first, "online")
    assert service.steps() == EVERY


@pytest.mark.slow
def test_an_online_run_that_goes_on_offline_is_uploaded_once(service: Service, tmp_path: Path) -> None:
    ended_and_gone_on(tmp_path, "online", "offline")
    assert service.steps() == EVERY[:5]
    upload(tmp_path)
    assert service.steps() == EVERY


def test_films_go_with_a_run_that_is_written_again(service: Service, tmp_path: Path) -> None:
    """Those of evaluations before the checkpoint."""
    film = tmp_path / "media/0000010/dream.webm"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"a film")
    ended_and_gone_on(tmp_path, "offline", "offline")
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/media/dream*.webm")
    assert copy.read_bytes() == b"a film"


def test_an_offline_run_is_ended_when_its_file_has_all_its_content(service: Service, tmp_path: Path) -> None:
    """W&B may return from `finish` before it has; here half a second before, and with a half of it at first."""
    logger = Logger(tmp_path, LoggerConfig(wandb="offline"), {}, say=lambda line: None)
    for step in range(300):  # some blocks
        logger.log({f"x{i}": step + i / 7 for i in range(20)}, step)
    logger.close()
    (real,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content, file = real.read_bytes(), tmp_path / "late.wandb"
    assert len(content) > 3 * 2**15 and is_whole(real)
    said: list[str] = []

    def finish() -> None:
        for delay, share in ((0.2, 2), (0.5, 1)):
            Timer(delay, file.write_bytes, [content[: len(content) // share]]).start()

    finish_wandb(
        SimpleNamespace(finish=finish, offline=True, settings=SimpleNamespace(sync_file=str(file))), said.append
    )  # type: ignore[arg-type]
    assert file.read_bytes() == content and not said
    for cut in (1, 5, 40, len(content) - 3, len(content)):  # at any byte: it has no end yet
        file.write_bytes(content[:-cut])
        assert not is_whole(file)
