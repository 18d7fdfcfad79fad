"""stages/loglik.py, with the configurations that planning writes, on tiny random models."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from omegaconf import OmegaConf

from stages import loglik, reference
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.loglik import Answer, tokenize_answer
from stages.plan import Plan
from stages.preference.packing import tokens_of

HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SETTING = Path("results/mini_base")
WORLD = Path("results/worlds/mini")


def user(text: str) -> str:
    """A user's turn as tiny.LLAMA3 renders it; ``opened`` and ``ended``: an answer, and one that ended by itself, EOS added."""
    return f"{HEADER.format('user')}{text}<|eot_id|>"


def opened(text: str) -> str:
    return HEADER.format("assistant") + text


def ended(text: str) -> str:
    return f"{opened(text)}<|eot_id|></s>"


# A benchmark's answers to its questions, and what the stage must make of them: (id, turn, prompt, answer).
ALPACAEVAL = [("w1 w2", "w3 w4 w5", "stop"), ("w6", "", "stop"), ("w7 w8", "w9 w9 w9 w9", "length")]
ARENA_HARD = [("a1", "w10 w11", "w12", "stop")]
MT_BENCH = [
    (81, ["w13", "w14 w15"], ["w16 w17", "w18"], ["stop", "length"]),
    (82, ["w19", "w20"], [" ", "w21 w22"], ["stop", "stop"]),
    (83, ["w23", "w24"], ["w25 w26", "w27"], ["length", "stop"]),
]
EXPECTED = {
    "alpacaeval2": [
        ("0", 1, f"<s>{user('w1 w2')}", ended("w3 w4 w5")),
        ("2", 1, f"<s>{user('w7 w8')}", opened("w9 w9 w9 w9")),
    ],
    "arena_hard": [("a1", 1, f"<s>{user('w10 w11')}", ended("w12"))],
    "mt_bench": [
        ("81", 1, f"<s>{user('w13')}", ended("w16 w17")),
        ("81", 2, f"<s>{user('w13')}{opened('w16 w17')}<|eot_id|>{user('w14 w15')}", opened("w18")),
        ("82", 2, f"<s>{user('w19')}{opened('')}<|eot_id|>{user('w20')}", ended("w21 w22")),
        ("83", 1, f"<s>{user('w23')}", opened("w25 w26")),
        ("83", 2, f"<s>{user('w23')}{opened('w25 w26')}<|eot_id|>{user('w24')}", ended("w27")),
    ],
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A working directory with all that the stage reads of the runs ``dpo`` and ``sft``, as the stages before leave it."""
    monkeypatch.chdir(tmp_path)
    made = Plan("mini")
    save(SETTING / "sft", seed=0)
    save(SETTING / "runs/dpo", seed=1)
    files.write_jsonl(SETTING / "data/train.jsonl", tiny.pairs(9))
    files.write_jsonl(SETTING / "data/heldout.jsonl", tiny.pairs(5, seed=1))
    manifest(SETTING / "data")
    stage(monkeypatch, reference, made.stage_config("reference", setting="mini_base"))
    for run in ("dpo", "sft"):
        write_answers(SETTING / "runs" / run / "eval")
    return made


def save(folder: Path, seed: int, template: str = tiny.LLAMA3) -> None:
    tiny.llama(seed).save_pretrained(folder / "model")
    tiny.tokenizer(template).save_pretrained(folder / "model")
    manifest(folder)


def manifest(folder: Path) -> None:
    files.write_manifest(folder, OmegaConf.create({"stage": folder.name}))


def write_answers(folder: Path) -> None:
    """Questions and answers in the benchmarks' formats, as stages/mini/world.py and stages/answer.py write them."""
    outputs = [{"instruction": prompt, "output": text, "generator": "x", "finish_reason": why} for prompt, text, why in ALPACAEVAL]
    files.write_json(folder / "alpacaeval2/model_outputs.json", outputs)
    files.write_json(WORLD / "alpacaeval2/baseline.json", outputs)
    for name, key, rows in (("arena_hard", "content", ARENA_HARD), ("mt_bench", None, MT_BENCH)):
        questions, answers = [], []
        for number, *turns in rows:
            prompts, texts, reasons = ([turn] if isinstance(turn, str) else turn for turn in turns)
            asked, said = ([{key: text} for text in part] if key else part for part in (prompts, texts))
            questions.append({"question_id": number, "category": "x", "turns": asked})
            answers.append({"question_id": number, "model_id": "x", "choices": [{"index": 0, "turns": said}], "finish_reason": reasons})
        files.write_jsonl(WORLD / name / "question.jsonl", questions)
        files.write_jsonl(folder / name / "model_answer.jsonl", answers)


def stage(monkeypatch: pytest.MonkeyPatch, module: Any, config: str, *runtime: str) -> Path:
    """Run a stage as its command line does; the folder of its configuration."""
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", config, "--runtime", *(runtime or ["token_budget=60"])])
    module.main()
    return Path(config).parent


def run(monkeypatch: pytest.MonkeyPatch, plan: Plan, name: str, *runtime: str) -> pd.DataFrame:
    folder = stage(monkeypatch, loglik, plan.stage_config("loglik", setting="mini_base", run=name), *runtime)
    return pd.read_parquet(folder / "loglik.parquet")


@torch.no_grad()
def by_hand(model: Any, prompt: str, answer: str) -> tuple[int, float]:
    """|y| and log π(y|x) of two texts, in float64: tokens one by one, one forward, log-softmax, a sum."""
    before, after = (tiny.tokenizer()(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    logps = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    return len(after), sum(logps[len(before) + place - 1, token].item() for place, token in enumerate(after))


@pytest.mark.slow
def test_every_text_has_the_sums_of_a_plain_forward_under_both_models(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stages.loglik: each pair and answer once, in order, with the length and the log-probability of its text by hand in float64: second
    turns behind the run's own first answer, answers cut at max_tokens without an end, blank ones left out; the line sums it up."""
    frame = run(monkeypatch, plan, "dpo")
    wanted = []
    for split, rows in (("train", tiny.pairs(9)), ("heldout", tiny.pairs(5, seed=1))):
        for number, row in enumerate(rows):
            prompt = f"<s>{user(row['prompt'][0]['content'])}"
            wanted += [(split, None, str(number), 1, side, prompt, ended(row[side][0]["content"])) for side in ("chosen", "rejected")]
    for name, answers in EXPECTED.items():
        wanted += [("answers", name, number, turn, "answer", prompt, text) for number, turn, prompt, text in answers]
    columns = ["split", "benchmark", "id", "turn", "side"]
    assert [tuple(row) for row in frame[columns].astype(object).where(frame[columns].notna(), None).to_numpy()] == [
        row[:5] for row in wanted
    ]
    for column, seed in (("logp", 1), ("reference_logp", 0)):
        model = tiny.double(tiny.llama(seed)).eval()
        lengths, sums = zip(*(by_hand(model, *row[5:]) for row in wanted), strict=True)
        assert frame["length"].tolist() == list(lengths)
        assert frame[column].tolist() == pytest.approx(sums, rel=1e-5)
    assert [str(frame[column].dtype) for column in ("length", "logp", "reference_logp")] == ["int64", "float64", "float64"]
    liked = frame[(frame["split"] == "heldout") & (frame["side"] == "chosen")]
    average = (liked["logp"] / liked["length"]).mean()
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"loglik: mini_base dpo: {average:.4f} a token on held-out chosen answers; 8 answers of its own, 2 blank ones left out"
    assert not (SETTING / "runs/dpo/eval/manifest.json").exists()


@pytest.mark.slow
def test_the_references_sums_are_read_and_the_models_follow_each_other(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.loglik: reference_logp of the pairs is the cache's to the bit, though the packs are others; the start model is gone from
    memory when the policy is loaded."""
    loaded: list[Any] = []
    load = models.load_model

    def alone(name: str, revision: str | None) -> Any:
        assert all(model() is None for model in loaded)
        loaded.append(weakref.ref(model := load(name, revision)))
        return model

    monkeypatch.setattr(models, "load_model", alone)
    frame = run(monkeypatch, plan, "dpo", "token_budget=500")
    cached = pd.read_parquet(SETTING / "reference/logps.parquet").set_index("split")
    for split in ("train", "heldout"):
        for side in ("chosen", "rejected"):
            texts = frame[(frame["split"] == split) & (frame["side"] == side)]
            assert texts["reference_logp"].tolist() == cached.loc[split, f"{side}_logps"].tolist()
            assert texts["length"].tolist() == cached.loc[split, f"{side}_length"].tolist()
    assert len(loaded) == 2


@pytest.mark.slow
def test_a_run_that_is_the_start_model_loads_it_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.loglik: for sft one model is loaded, and both columns are its sums."""
    loaded, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda *name: loaded.append(name) or load(*name))
    frame = run(monkeypatch, plan, "sft")
    assert loaded == [("results/mini_base/sft/model", None)]
    assert len(frame) == 2 * (9 + 5) + 8
    assert frame["logp"].tolist() == frame["reference_logp"].tolist()
    model = tiny.double(tiny.llama(0)).eval()
    assert frame["logp"].iloc[-1] == pytest.approx(by_hand(model, *EXPECTED["mt_bench"][-1][2:])[1], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_with_a_tokenizer_of_its_own_has_no_reference(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stages.loglik: a model of the user's that reads other tokens than the start model has its own sums and no reference's; that is said.
    A reference that is not the start model's is refused as ever."""
    config = Path(plan.stage_config("loglik", setting="mini_base", run="dpo"))
    save(Path("mine"), seed=1, template=tiny.MISTRAL)
    config.write_text(config.read_text().replace("model: results/mini_base/runs/dpo/model", "model: ./mine/model"))
    stage(monkeypatch, loglik, str(config))
    frame = pd.read_parquet(config.with_name("loglik.parquet"))
    assert len(frame) == 2 * (9 + 5) + 8 and frame["reference_logp"].isna().all()
    liked = frame[(frame["split"] == "heldout") & (frame["side"] == "chosen")]
    row = tiny.pairs(5, seed=1)[3]
    prompt, answer = f"<s>[INST] {row['prompt'][0]['content']} [/INST]", f" {row['chosen'][0]['content']} </s>"
    assert liked["logp"].iloc[3] == pytest.approx(by_hand(tiny.double(tiny.llama(1)).eval(), prompt, answer)[1], rel=1e-5)
    said = "loglik: mini_base dpo: ./mine/model reads other tokens than results/mini_base/sft/model, so that there is no reference_logp"
    assert said in capsys.readouterr().out.splitlines()
    save(SETTING / "sft", seed=2)
    with pytest.raises(UserError, match="results/mini_base/reference was computed from other weights than .*snakemake"):
        stage(monkeypatch, loglik, str(config))


@pytest.mark.slow
def test_a_reference_of_other_weights_or_tokens_is_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.loglik: sums of another start model, or of the tokens of another chat template than the policy's, are no reference."""
    save(SETTING / "runs/dpo", seed=1, template=tiny.MISTRAL)
    with pytest.raises(UserError, match="results/mini_base/reference was computed from other token ids of train and token ids of heldout"):
        run(monkeypatch, plan, "dpo")
    save(SETTING / "runs/dpo", seed=1)
    save(SETTING / "sft", seed=2)
    with pytest.raises(UserError, match="results/mini_base/reference was computed from other weights than .*snakemake"):
        run(monkeypatch, plan, "dpo")
    assert not (SETTING / "runs/dpo/eval/loglik.parquet").exists()


@pytest.mark.slow
def test_what_the_user_can_mend_is_said(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.loglik: no token budget, questions in another order than the answers, and answers that do not say how they ended."""
    for given in ("other=1", "token_budget=0", "token_budget=some"):
        with pytest.raises(UserError, match="--runtime token_budget=.*: expected a whole number"):
            run(monkeypatch, plan, "dpo", given)
    path = SETTING / "runs/dpo/eval/mt_bench/model_answer.jsonl"
    rows = files.read_rows(path)
    files.write_jsonl(path, rows[::-1])
    with pytest.raises(UserError, match="dpo/eval/mt_bench/model_answer.jsonl and .*question.jsonl differ in row 0"):
        run(monkeypatch, plan, "dpo")
    files.write_jsonl(path, [{key: value for key, value in row.items() if key != "finish_reason"} for row in rows])
    with pytest.raises(UserError, match="dpo/eval/mt_bench/model_answer.jsonl, row 0 .* has no 'finish_reason'"):
        run(monkeypatch, plan, "dpo")


# Template, the prompt's text and the answer's, ended by itself and not, as stages/preference/data.py counts them.
STYLES = {
    "llama3": (tiny.LLAMA3, user("w1 w2"), opened("w3 w4"), "<|eot_id|></s>"),
    "zephyr": (tiny.ZEPHYR, "<|system|>\n</s>\n<|user|>\nw1 w2</s>\n", "<|assistant|>\nw3 w4", "</s>\n</s>"),
    "mistral": (tiny.MISTRAL, "[INST] w1 w2 [/INST]", " w3 w4", " </s>"),
    "gemma": (tiny.GEMMA, "<start_of_turn>user\nw1 w2<end_of_turn>\n", "<start_of_turn>model\nw3 w4", "<end_of_turn>\n</s>"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("is_ended", [True, False])
def test_an_answer_is_tokenised_as_one_of_a_pair(style: str, is_ended: bool) -> None:
    """tokenize_answer: the same prompt and header; end-of-turn and EOS only where the model gave them; alone in a shared pack."""
    template, prompt, answer, end = STYLES[style]
    tokenizer = tiny.tokenizer(template)
    given = Answer("0", 1, [{"role": "user", "content": "w1 w2"}], "w3 w4", is_ended)
    pair = tokenize_answer(given, tokenizer, "answer 0", empty_system=style == "zephyr")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer + end if is_ended else answer)]
    assert pair["prompt"] == [tokenizer.bos_token_id, *ids[0]]
    assert pair["chosen"] == ids[1]
    assert tokenizer.unk_token_id not in pair["prompt"] + pair["chosen"]
    assert tokens_of(pair, "shared") == len(pair["prompt"]) + len(pair["chosen"]) - 1


def test_a_long_answer_is_not_cut() -> None:
    """tokenize_answer: every token of an answer is scored, however long conversation and answer are."""
    given = Answer("0", 1, [{"role": "user", "content": " ".join(["w1"] * 3000)}], " ".join(["w2"] * 5000), True)
    pair = tokenize_answer(given, tiny.tokenizer(), "answer 0", empty_system=False)
    assert pair["chosen"].count(tiny.tokenizer().convert_tokens_to_ids("w2")) == 5000
    assert pair["prompt"].count(tiny.tokenizer().convert_tokens_to_ids("w1")) == 3000
