"""The method `checkpoint`: any model through the benchmarks, untrained; and how a benchmark's questions are decoded (stages/answer.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from checkout import ROOT
from omegaconf import OmegaConf
from test_readme import fenced
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from stages import answer, assets, judge, score
from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Question, Turn
from stages.lib import files, models
from stages.lib.engine import generate
from stages.lib.errors import UserError
from stages.mini import calibrate, world
from stages.plan import Plan, compose, targets
from stages.plan.compose import CONF, compose_config
from stages.preference.data import question_tokens

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of conf/ that a test may add to, with the README's method in it, in a working directory that has the README's model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    compose.part_of_conf.cache_clear()
    (tmp_path / "conf/method/my_model.yaml").write_text(fenced("yaml", "defaults: [checkpoint, _self_]"))
    tiny.llama(head_dim=32, max_position_embeddings=1024).save_pretrained("my_model")
    tiny.tokenizer().save_pretrained("my_model")
    yield tmp_path / "conf"
    compose.part_of_conf.cache_clear()


def method(conf: Path, **values: Any) -> Plan:
    """A plan whose conf/method/mine.yaml is a checkpoint with ``values``."""
    (conf / "method/mine.yaml").write_text(
        yaml.safe_dump({"defaults": ["checkpoint", "_self_"], "name": "mine", **values}, sort_keys=False)
    )
    compose.part_of_conf.cache_clear()
    return Plan("smoke")


# -- the plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_takes_the_place_of_the_start_and_nothing_else_changes(conf: Path) -> None:
    """Plan: the answers of the README's file are its model's, asked as the setting asks; they need the world and no training."""
    plan = Plan("smoke")
    assert plan.run_name("smoke", "my_model", {}) == "my_model"
    mine, start = (plan.composed("answer", setting="smoke", run=run)[1] for run in ("my_model", "sft"))
    assert {key for key in mine if mine[key] != start[key]} == {"run", "model"}
    assert (mine["model"], mine["revision"]) == ("./my_model", None)
    assert plan.upstream_manifests("answer", setting="smoke", run="my_model") == ["results/worlds/smoke/manifest.json"]
    with pytest.raises(UserError, match="method my_model trains nothing; its model is ./my_model"):
        plan.stage_config("train", setting="smoke", run="my_model")
    for key in ("beta", "seed_", "model", "revision", "chat_template"):
        with pytest.raises(UserError, match=f"{key}: a run of my_model cannot vary it"):
            plan.run_name("smoke", "my_model", {key: "x"})
    scale = conf / "scale/smoke.yaml"
    scale.write_text(scale.read_text().replace("methods: [sft,", "methods: [sft, my_model,"))
    plan = Plan("smoke")
    assert ("smoke_on_policy", "my_model") in targets.runs(plan, "methods")
    plan.write([])
    assert Path("results/smoke_on_policy/runs/my_model/eval/score.yaml").is_file()
    assert not Path("results/smoke/runs/my_model/config.yaml").exists()


@pytest.mark.slow
def test_a_hub_id_has_its_revision_and_a_model_made_here_its_stage(conf: Path) -> None:
    """Plan: id, revision and template reach the answers; what lies below results/ is made first, whoever's run it is."""
    plan = method(conf, model="org/name", revision=COMMIT, chat_template="{{ messages }}")
    composed = plan.composed("answer", setting="smoke", run="mine")[1]
    assert (composed["model"], composed["revision"], composed["chat_template"]) == ("org/name", COMMIT, "{{ messages }}")
    plan = method(conf, model="results/smoke/runs/dpo+beta=0.3/model")
    assert "results/smoke/runs/dpo+beta=0.3/manifest.json" in plan.upstream_manifests("answer", setting="smoke_on_policy", run="mine")
    plan.write(["results/smoke_on_policy/runs/mine/eval/oracle/scores.json"])
    assert Path("results/smoke/runs/dpo+beta=0.3/config.yaml").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^method.model is missing"),
        ({"model": "./unknown"}, "method.model=./unknown: no such folder; give one that exists, or a hub id"),
        ({"model": "/a b"}, "method.model=/a b: no such folder"),
        ({"model": "org/name/more", "revision": COMMIT}, "method.model=org/name/more: no such folder"),
        ({"model": "org/name"}, "method.revision: org/name is no folder here, and a hub id needs one"),
        ({"model": None, "revision": COMMIT}, "method.revision: there is no method.model"),
        ({"model": "./my_model", "learning_rate": 1e-5}, "method.learning_rate: leave it out of method mine: it has no objective"),
        ({"model": "./my_model", "reference": "cached"}, "method.reference: leave it out"),
        ({"model": "./my_model", "beta": 2.0}, "method.beta: objective None has no such parameter"),
        ({"model": "./my_model", "modle": "x"}, "method.modle.*did you mean 'model'"),
        ({"model": "./my_model", "objective": "simpo", "beta": 2.0}, "lacks"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_sentence_with_the_key(conf: Path, values: dict[str, Any], message: str) -> None:
    """validate_method: a checkpoint that is nowhere, that is not pinned, or that is said how to train."""
    plan = method(conf, **values)
    with pytest.raises(UserError, match=message) as error:
        plan.stage_config("answer", setting="smoke", run="mine")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_trained_method_names_no_model(conf: Path) -> None:
    """validate_method: the start model is the setting's, the same for all methods."""
    (conf / "method/mine.yaml").write_text("defaults: [simpo, _self_]\nname: mine\nmodel: ./my_model\n")
    with pytest.raises(UserError, match="method.model: leave it out of method mine: it has an objective"):
        Plan("smoke").stage_config("answer", setting="smoke", run="mine")


@pytest.mark.slow
def test_a_protocol_has_the_version_that_conf_states(conf: Path) -> None:
    """validate: conf/benchmark names the version that stages/judging scores by; another stops while planning, and so does a search."""
    assert Plan("paper").base.benchmarks.arena_hard.version == "Arena-Hard v0.1 (arena-hard-auto d99b139)"
    file = conf / "benchmark/arena_hard.yaml"
    text = file.read_text()
    file.write_text(text.replace("version: Arena-Hard v0.1 (arena-hard-auto d99b139)", "version: Arena-Hard v2.0"))
    with pytest.raises(
        UserError, match=r"benchmarks.arena_hard.version='Arena-Hard v2.0': stages/benchmarks has arena_hard as 'Arena-Hard v0.1"
    ):
        Plan("smoke").stage_config("answer", setting="smoke", run="sft")
    file.write_text(text.replace("protocol: arena_hard", "protocol: arena_herd"))
    with pytest.raises(UserError, match="protocol=arena_herd.*did you mean 'arena_hard'"):
        Plan("smoke").stage_config("answer", setting="smoke", run="sft")
    with pytest.raises(UserError, match=r"setting.decoding.alpacaeval2.search=beam: expected sample or width_1_beam"):
        compose_config("setting.decoding.alpacaeval2.search=beam")


@pytest.mark.slow
def test_a_setting_says_whether_its_answers_are_sampled(conf: Path) -> None:
    """conf/setting: a beam of width one wherever the authors' configuration has `do_sample: true`, as their package then searched."""
    plan = Plan("paper")
    searches = {setting: plan.setting(setting).setting.decoding.alpacaeval2.search for setting in plan.scale["settings"]}
    assert searches == dict.fromkeys(searches, "width_1_beam") | {"mistral_instruct": "sample"}
    asked = plan.composed("answer", setting="mistral_base", run="simpo")[1]["benchmarks"]
    assert {name: benchmark["search"] for name, benchmark in asked.items()} == {
        "alpacaeval2": "width_1_beam",
        "arena_hard": "sample",
        "mt_bench": "sample",
    }


# -- the path ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_is_answered_judged_and_scored(
    conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """answer, judge, score as planned for the README's method: all benchmarks of the smoke world, with vLLM and the mini judge.

    Where a beam of width one is asked for, AlpacaEval's answers are those of Transformers' own greedy decoding, whatever the temperature;
    sampled at it they are not. Scores name the protocol's version, judge and baseline, in the file and in print.
    """

    def stage(module: Any, *words: str) -> None:
        monkeypatch.setattr("sys.argv", [module.__name__, *words])
        module.main()

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the judge's server is a process of its own
    scale, setting = conf / "scale/smoke.yaml", conf / "setting/smoke.yaml"
    few = "{ answering: { max_tokens: 8 } }"
    scale.write_text(f"{scale.read_text()}\nbenchmarks: {{ arena_hard: {few}, mt_bench: {few} }}\n")
    decoding = "decoding: {{ alpacaeval2: {{ search: {}, temperature: 1.5, max_tokens: 12 }} }}\n"
    start_engine, started = answer.start_engine, list[Any]()

    def one_engine(*arguments: Any) -> Any:
        started.extend([] if started else [start_engine(*arguments)])
        return started[0]

    monkeypatch.setattr(answer, "start_engine", one_engine)
    text = setting.read_text()
    where = {"setting": "smoke", "run": "my_model"}
    eval_ = Path("results/smoke/runs/my_model/eval")
    outputs = {}
    for search in ("sample", "width_1_beam"):
        setting.write_text(text + decoding.format(search))
        compose.part_of_conf.cache_clear()
        plan = Plan("smoke")
        if not outputs:
            stage(world, "--config", plan.stage_config("world", world="smoke"))
            stage(assets, "--config", plan.stage_config("assets", benchmark="alpacaeval2"))
            stage(calibrate, "--config", plan.stage_config("calibrate", world="smoke"))
        stage(answer, "--config", plan.stage_config("answer", **where))
        outputs[search] = [row["output"] for row in files.read_json(eval_ / "alpacaeval2/model_outputs.json")]

    tokenizer, model = models.load_tokenizer("my_model"), models.load_model("my_model").eval()
    greedy = []
    for row in files.read_json("results/worlds/smoke/alpacaeval2/baseline.json"):
        chat = [{"role": "user", "content": row["instruction"]}]
        tokens = torch.tensor([question_tokens(chat, tokenizer, empty_system=True)])
        how = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 12, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
        written = model.generate(tokens, **how)[0, tokens.shape[1] :]
        greedy.append(tokenizer.decode(written, skip_special_tokens=True).strip())
    assert outputs["width_1_beam"] == greedy
    assert sum(a != b for a, b in zip(outputs["sample"], greedy, strict=True)) > 50  # of 60

    stage(judge, "--config", plan.stage_config("judge", **where), *plan.knobs["judge"].split())
    capsys.readouterr()
    stage(score, "--config", plan.stage_config("score", **where))
    printed = capsys.readouterr().out.splitlines()
    for name, line in zip(plan.benchmarks, printed, strict=True):
        scores = files.read_json(eval_ / f"{name}/scores.json")
        assert (scores["generator"], scores["protocol"]["version"]) == ("my_model", BENCHMARKS[name].version)
        assert line.startswith(f"score: my_model on {name}: ") and BENCHMARKS[name].version in line
        if name != "oracle":
            assert scores["judge"] == "mini-judge" and "judge mini-judge" in line
    assert scores["n"] == 60


@pytest.mark.slow
def test_what_no_checkpoint_is_stops_with_the_key(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.answer: a hub id that nobody knows, and a folder without a model, in one sentence that names `model`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    questions = "questions.json"
    files.write_json(questions, [{"instruction": "w1"}])
    for values in ({"model": "org/unknown", "revision": COMMIT}, {"model": "./empty"}):
        plan = method(conf, **values)
        composed = OmegaConf.load(plan.stage_config("answer", setting="smoke", run="mine"))
        composed.benchmarks = {"alpacaeval2": {**composed.benchmarks.alpacaeval2, "questions": questions}}
        files.write_text("own/answer.yaml", OmegaConf.to_yaml(composed))
        monkeypatch.setattr("sys.argv", ["answer", "--config", "own/answer.yaml"])
        with pytest.raises(
            ValueError, match=rf"^model {values['model']}.* cannot be loaded: .*`model` in conf/setting or conf/method"
        ) as error:
            answer.main()
        assert "\n" not in str(error.value)


def test_a_conversation_of_broken_characters_fits_and_one_that_does_not_is_refused() -> None:
    """answer.longest: bytes that are no text are read again as U+FFFD, three bytes each, in the second turn. engine.generate: a prompt
    that fills the model's context is an error that says how long both are."""
    words = Tokenizer(BPE())
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    words.train_from_iterator([], BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", chat_template=tiny.LLAMA3)
    byte = tokenizer.convert_tokens_to_ids("â")  # 0xE2, the first of three
    question = Question("1", 1, "", ["Name two towns.", "And a third?"], {})
    answered = answer.Asked("mt_bench", question, 0.0, [Turn(tokenizer.decode([byte] * 50), "stop")])
    tokens = question_tokens(answered.messages(), tokenizer, empty_system=False)
    bound = answer.longest(tokenizer, [answered], OmegaConf.create({"empty_system": False, "benchmarks": {"mt_bench": {"max_tokens": 50}}}))
    assert len(tokens) > 150 and len(tokens) + 50 <= bound

    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=len(tokens)))
    with pytest.raises(UserError, match=f"prompt 2 of 2 has {len(tokens)} tokens, and the model reads {len(tokens)}; .* longer context"):
        generate(engine, [{"prompt_token_ids": [1]}, {"prompt_token_ids": tokens}], [])
