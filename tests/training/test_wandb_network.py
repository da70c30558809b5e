"""The network goes away while a run logs to Weights & Biases: nothing waits for it, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

from worldmodel.training.logging.logger import REPOSITORY

SCRIPT = '''
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RUN = {"id": "x", "name": "abc", "displayName": "d", "config": "{}", "historyLineCount": 0}
RUN["project"] = {"id": "p", "name": "worldmodel", "entity": {"id": "e", "name": "me"}}


class Server(BaseHTTPRequestHandler):
    """As much of the service as the beginning of a run asks for."""

    def log_message(self, *given):
        pass

    def do_POST(self):
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/graphql":
            RUN["name"] = json.loads(asked)["variables"].get("name", RUN["name"])
        answer = json.dumps({"data": {"upsertBucket": {"bucket": RUN, "inserted": True}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}", WANDB_API_KEY="a" * 40)

from worldmodel.training.logging import wandb_run
from worldmodel.training.logging.logger import Logger, LoggerConfig

wandb_run.FINISH_SECONDS = 3.0
logger = Logger(Path(sys.argv[1]), LoggerConfig(wandb="online"), {})
logger.log({"x": 1}, 1)
server.shutdown()
server.server_close()
began = time.monotonic()
for step in range(2, 201):
    logger.log({"x": step}, step)
print(f"logged in {time.monotonic() - began:.3f}")
logger.close()
'''


def test_a_run_goes_on_without_the_network(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environ.pop("WANDB_MODE", None)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    address, logged, told = done.stdout.splitlines()
    assert address.startswith("Weights & Biases: http://127.0.0.1"), done.stderr
    assert float(logged.split()[-1]) < 5
    folder = Path(told.rpartition("wandb sync ")[2])
    assert "the upload is incomplete" in told and list(folder.glob("*.wandb"))
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["x"] for row in rows] == list(range(1, 201))
