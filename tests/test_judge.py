"""stages/judge.py and stages/judging/client.py against a small judge that this file serves over HTTP, with its faults.

The judge reads the question at the start of the message: FAULTS says what it does on which. It counts what it was asked in
``asked`` (in this process), or serves as the stage's own server: python -m tests.test_judge --config …/judge.yaml
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from stages import score
from stages.judging import client

REPOSITORY = Path(__file__).parents[1]
TEMPLATE = "<|im_start|>system\nYou judge.\n<|im_end|>\n<|im_start|>user\n{instruction}\n1: {output_1}\n2: {output_2}\n<|im_end|>"
DECODING = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": True, "top_logprobs": 5}

# what the judge does on question n, where it is not a plain verdict
FAULTS = {"q1.": "500 once", "q2.": "neither", "q3.": "refusal", "q4.": "malformed", "q5.": "not json", "q6.": "hangs", "q7.": "429 once"}


def completion(top: list[tuple[str, float]], **message: Any) -> dict[str, Any]:
    content = [{"token": top[0][0], "logprob": top[0][1], "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}] if top else None
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": top[0][0] if top else None, **message}}
    return {"choices": [choice | {"logprobs": content and {"content": content}}], "usage": {"total_tokens": 300}}


class Judge(BaseHTTPRequestHandler):
    """Knows the model's answer for the better one, with p = 0.8, unless the question is one of FAULTS; status 401 where told so."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    keys: set[str | None] = set()
    status = 200

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        question = text.split()[0]
        self.asked[question] += 1
        self.keys.add(self.headers["Authorization"])
        if self.status != 200:
            return self.reply(self.status, {"error": {"message": f"no: {self.headers['Authorization']}"}})
        first = "1: model" in text
        fault = FAULTS.get(question)
        if fault in ("500 once", "429 once") and self.asked[question] == 1:
            return self.reply(int(fault[:3]), {"error": {"message": "busy"}}, {"Retry-After": "0.05"})
        if fault == "hangs":
            time.sleep(8)
        if fault == "neither":
            return self.reply(200, completion([("I", -0.1), ("The", -2.0)]))
        if fault == "refusal":
            return self.reply(200, completion([], refusal="I cannot judge this"))
        if fault == "malformed":
            return self.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": "m"}]}}]})
        if fault == "not json":
            return self.reply(200, "<html>")
        return self.reply(200, completion([("m", -0.22314355), ("M", -1.60943791)] if first else [("M", -0.22314355), ("m", -1.60943791)]))

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may have given up
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The base URL of a Judge in this process, with counts of its own: a late request of the test before is not counted here."""
    fresh = type("Judge", (Judge,), {"asked": Counter(), "keys": set(), "status": 200})
    monkeypatch.setattr(sys.modules[__name__], "Judge", fresh)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def make_slice(folder: Path, n: int = 12, **judge: Any) -> Path:
    """A judge stage's slice with n questions; where ``base_url`` is not given, this file is the stage's server."""
    names = [f"q{i}." for i in range(n)]
    outputs = {"answers": "model", "baseline": "base"}
    for file, generator in outputs.items():
        rows = [
            {"dataset": "d", "instruction": name, "output": f"{generator}{'x' * i}", "generator": generator} for i, name in enumerate(names)
        ]
        (folder / f"{file}.json").write_text(json.dumps(rows))
    (folder / "template.txt").write_text(TEMPLATE)
    paths = {"answers": str(folder / "answers.json"), "baseline": str(folder / "baseline.json"), "template": str(folder / "template.txt")}
    paths["judgments"] = str(folder / "eval/alpacaeval2/annotations.json")
    server = None if "base_url" in judge else {"module": "tests.test_judge"} | judge.pop("server", {})
    config = {
        "stage": "judge",
        "run": "dpo",
        "benchmarks": {"alpacaeval2": {"protocol": "alpacaeval2", **paths, "swap_seed": 0, "decoding": DECODING}},
        "judge": {"name": "small", "model": "small-judge", "base_url": None, "api_key_env": None, "server": server, **judge},
    }
    (folder / "eval").mkdir()
    path = folder / "eval/judge.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, *runtime: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.judge", "--config", str(config), "--runtime", "timeout=1", "max_retries=3", *runtime]
    # a proxy that is not there: the stage must reach its own machine without it
    env = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "OPENAI_API_KEY": "sk-canary", **environment}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie, which only waits for its parent's look, does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_every_answer_gets_a_verdict_or_a_recorded_failure_that_scores_count(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stages.judge: 500 and 429 are asked again, what cannot be read is a failure with its reason, and stages.score counts those."""
    stage = start(make_slice(tmp_path, base_url=endpoint))
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 0, errors
    rows = json.loads((tmp_path / "eval/alpacaeval2/annotations.json").read_text())
    assert [row["instruction"] for row in rows] == [f"q{i}." for i in range(12)]
    reasons = {
        "q2.": "neither m nor M",
        "q3.": "refused: 'I cannot",
        "q4.": "no choices",
        "q5.": "not JSON",
        "q6.": "no response in 4 tries",
    }
    for row in rows:
        if reason := reasons.get(row["instruction"]):
            assert row["preference"] is None and reason in row["failure"]
        else:
            assert row["failure"] is None and row["preference"] == pytest.approx(1.8, abs=1e-6)
    # 1 try and max_retries more; on a busy machine a try may time out before the server has read it.
    assert 2 <= Judge.asked["q6."] == max(Judge.asked.values()) <= 4
    assert min(Judge.asked["q1."], Judge.asked["q7."]) == 2
    assert Judge.keys == {"Bearer none"}, "a key of the environment went to a judge that needs none"
    assert {"output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference_raw_completion"} <= set(rows[0])
    assert rows[0]["preference_raw_completion"]["total_tokens"] == 300

    gamed = ["index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    gamed += [f"{i},{m},0.{5 + i % 3},{(-1) ** (i + k)},{i % 4},False" for k, m in enumerate("cv") for i in range(12)]
    (tmp_path / "gamed.csv").write_text("\n".join(gamed))
    files = {"answers": "answers.json", "judgments": "eval/alpacaeval2/annotations.json", "gamed": "gamed.csv", "out": "scores.json"}
    arguments = [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / file))]
    monkeypatch.setattr(sys, "argv", ["score", "--benchmark", "alpacaeval2", *arguments])
    score.main()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["n_failed"], scores["n_total"], scores["judge"]) == (5, 7, "small-judge")
    assert scores["win_rate"] == pytest.approx(80, abs=1e-4)


@pytest.mark.parametrize(("status", "advice"), [(401, "SMALL_KEY"), (403, "ask for access"), (404, "judge.base_url"), (400, "decoding")])
def test_what_no_retry_can_mend_stops_at_once_and_says_what_to_do(
    status: int, advice: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ask(): 400, 401, 403 and 404 stop after one round with endpoint, model and advice, and never with the key."""
    monkeypatch.setenv("SMALL_KEY", "sk-canary")
    Judge.status = status
    requests = [{"messages": [{"role": "user", "content": f"q{i}."}]} for i in range(100)]
    with pytest.raises(ValueError) as caught:
        client.ask(requests, model="small-judge", base_url=endpoint, api_key_env="SMALL_KEY", concurrency=4)
    message = str(caught.value)
    assert all(part in message for part in (endpoint, "small-judge", str(status), advice)), message
    assert "sk-canary" not in message
    assert sum(Judge.asked.values()) <= 4 and max(Judge.asked.values()) == 1
    assert Judge.keys == {"Bearer sk-canary"}


def test_a_missing_key_is_an_error_before_any_call(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALL_KEY", raising=False)
    with pytest.raises(ValueError, match="SMALL_KEY is empty"):
        client.ask([{"messages": []}], model="m", base_url=endpoint, api_key_env="SMALL_KEY")
    assert not Judge.asked


def test_an_endpoint_that_is_down_is_an_error_and_no_eight_hundred_failures(endpoint: str) -> None:
    """ask(): DOWN failures in a row stop it."""
    Judge.status = 503
    requests = [{"messages": [{"role": "user", "content": f"q{i}."}]} for i in range(100)]
    with pytest.raises(ValueError, match="is down.*HTTP 503"):
        client.ask(requests, model="small-judge", base_url=endpoint, max_retries=0)
    assert sum(Judge.asked.values()) <= client.DOWN + 16


def test_a_local_server_is_gone_with_the_stage_however_that_ends(tmp_path: Path) -> None:
    """stages.judge: its server ends after the work, after an error, on SIGTERM (exit 143) and when the stage is killed."""

    def run(name: str, behaviour: str, stop: signal.Signals | None) -> tuple[int, str]:
        folder = tmp_path / name
        folder.mkdir()
        stage = start(make_slice(folder, server={"behaviour": behaviour, "pid": str(folder / "pid")}), "timeout=20")
        assert wait_for((folder / "pid").exists), stage.communicate()
        if stop:
            assert wait_for((folder / "asked").exists), stage.communicate()
            stage.send_signal(stop)
        _, errors = stage.communicate(timeout=60)
        assert wait_for(lambda: not alive(int((folder / "pid").read_text()))), f"{name}: the server outlived the stage"
        assert (folder / "eval/alpacaeval2/annotations.json").exists() == (stage.returncode == 0)
        return stage.returncode, errors

    assert run("works", "works", None)[0] == 0
    code, errors = run("refuses", "refuses", None)
    assert code == 1 and "HTTP 401" in errors
    assert run("terminated", "hangs", signal.SIGTERM)[0] == 143
    assert run("killed", "hangs", signal.SIGKILL)[0] == -signal.SIGKILL
    code, errors = run("dies", "dies", None)
    assert code == 1 and "ended in mid-work (3)" in errors and "last words" in errors


@pytest.mark.parametrize(("behaviour", "message"), [("dies first", "ended before it listened"), ("says nothing", "did not listen within")])
def test_a_server_that_never_listens_is_an_error_with_its_last_words(
    behaviour: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import judge

    monkeypatch.setattr(judge, "START_SECONDS", 3)
    monkeypatch.chdir(REPOSITORY)
    config = make_slice(tmp_path, server={"behaviour": behaviour, "pid": str(tmp_path / "pid")})
    with pytest.raises(ValueError, match=rf"(?s){message}.*last words"), judge.local_server("tests.test_judge", config):
        pass
    assert not alive(int((tmp_path / "pid").read_text()))


def test_answers_in_another_order_and_a_judgment_left_out_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.judge: answers of other questions, an empty file, an oracle that leaves a row out and an unknown protocol stop by name."""
    from stages import judge
    from stages.mini import oracle

    config = make_slice(tmp_path, base_url="http://127.0.0.1:9/v1")
    answers = json.loads((tmp_path / "answers.json").read_text())
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config)])
    for content, message in (
        (answers[:4] + [answers[5]], "row 4 .from 0.: 'q5.' and 'q4.'"),
        ([], "holds no rows"),
        (answers[:4], "4 and 12 rows"),
    ):
        (tmp_path / "answers.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            judge.main()

    (tmp_path / "answers.json").write_text(json.dumps(answers))
    changed = yaml.safe_load(config.read_text())
    paths = {"answers": str(tmp_path / "answers.json"), "judgments": str(tmp_path / "judgments.json")}
    changed["benchmarks"] = {"oracle": {"protocol": "oracle", "world": "w", **paths}}
    config.write_text(yaml.safe_dump(changed))
    monkeypatch.setattr(oracle, "annotate", lambda rows, world: [row | {"score": 5.0} for row in rows if row["instruction"] != "q7."])
    with pytest.raises(ValueError, match=r"row 7 .from 0.: 'q7.' and 'q8.'"):
        judge.main()
    changed["benchmarks"]["oracle"]["protocol"] = "oracel"
    config.write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match="unknown protocol 'oracel'"):
        judge.main()


def serve() -> None:
    """The judge as the stage's own server, with the behaviour that the slice asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    settings = yaml.safe_load(parser.parse_args().config.read_text())["judge"]["server"]
    behaviour, pid = settings["behaviour"], Path(settings["pid"])
    pid.write_text(str(os.getpid()))
    print("starting: last words")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if behaviour == "dies first":
        sys.exit(3)
    if behaviour == "says nothing":
        time.sleep(60)
    FAULTS.clear()

    class Behaving(Judge):
        status = 401 if behaviour == "refuses" else 200

        def do_POST(self) -> None:
            (pid.parent / "asked").touch()
            if behaviour == "dies":
                os._exit(3)
            if behaviour == "hangs":
                time.sleep(60)
            super().do_POST()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Behaving)
    print(f"listening on http://127.0.0.1:{server.server_port}/v1")
    server.serve_forever()


if __name__ == "__main__":
    serve()
