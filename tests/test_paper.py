"""conf/scale/paper.yaml: the authors' values, what its plan holds and refuses, and that its stages run on real schemas and real families.

Models are tiny, with random weights and chat templates in the style of the paper's; data sets are a few rows in the real ones' schemas.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM

from stages import pairs, reference, sft, train
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.lib.records import inputs_of, read_records
from stages.plan import Plan, compose, stage_configs
from stages.plan import plan as planned
from stages.plan.knobs import knobs_of
from stages.plan.values import plain
from stages.preference.data import cut_pair, question_tokens, tokenize_rows, whole_pair
from stages.preference.logps import answer_logps, attention_layout, fastest_correct_layout
from stages.preference.packing import collate

ROOT = Path(__file__).parent.parent
ULTRAFEEDBACK = ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "test_prefs")
# Of each setting: start model, data and splits, max_length and max_prompt_length, DPO's learning rate, SimPO's with beta and gamma, and
# AlpacaEval's temperature and most tokens. Written down from the authors' configurations and README, and the paper's Table 8.
AUTHORS: dict[str, tuple[Any, ...]] = {
    "mistral_base": ("alignment-handbook/zephyr-7b-sft-full", ULTRAFEEDBACK, (1024, 512), 5e-7, (3e-7, 2.0, 1.6), (0.7, 2048)),
    "mistral_instruct": (
        "mistralai/Mistral-7B-Instruct-v0.2",
        ("princeton-nlp/mistral-instruct-ultrafeedback", "train", "test"),
        (2048, 1800),
        5e-7,
        (5e-7, 2.5, 0.3),
        (0.5, 2048),
    ),
    "llama3_base": ("princeton-nlp/Llama-3-Base-8B-SFT", ULTRAFEEDBACK, (2048, 1800), 5e-7, (6e-7, 2.0, 1.0), (0.9, 4096)),
    "llama3_instruct": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        ("princeton-nlp/llama3-ultrafeedback", "train", "test"),
        (2048, 1800),
        7e-7,
        (1e-6, 2.5, 1.4),
        (0.9, 4096),
    ),
    "llama3_instruct_v02": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        ("princeton-nlp/llama3-ultrafeedback-armorm", "train", "test"),
        (2048, 1800),
        3e-7,
        (1e-6, 10.0, 3.0),
        (0.9, 4096),
    ),
    "gemma2_it": (
        "google/gemma-2-9b-it",
        ("princeton-nlp/gemma2-ultrafeedback-armorm", "train", "test"),
        (2048, 1800),
        5e-7,
        (8e-7, 10.0, 5.0),
        (0.5, 4096),
    ),
}
RATIOS = {"mistral_base": 0.8, "llama3_base": 0.5, "llama3_instruct_v02": 0.3, "gemma2_it": 0.5}  # authors' gamma_beta_ratio, unrounded
RANKED_BY = {"mistral_instruct": "PairRM", "llama3_instruct": "PairRM", "llama3_instruct_v02": "ArmoRM", "gemma2_it": "ArmoRM"}
FILES = {"alpacaeval2": ("model_outputs.json", "annotations.json")}
FILES |= dict.fromkeys(("arena_hard", "mt_bench"), ("model_answer.jsonl", "model_judgment.jsonl"))


@pytest.fixture(scope="module")
def paper() -> Plan:
    return Plan("paper")


# -- the configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_settings_are_the_papers_six(paper: Plan) -> None:
    assert paper.scale["settings"] == list(AUTHORS)
    assert paper.scale["methods"] == Plan().scale["methods"]
    assert (paper.base.world, paper.benchmarks) == (None, list(FILES))
    judge = paper.base.judge
    assert (judge.name, judge.server, judge.retired) == ("vllm", None, None) and re.fullmatch("[0-9a-f]{40}", judge.revision)


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.slow
def test_every_value_is_the_authors(paper: Plan, name: str) -> None:
    start, (data, split, heldout), lengths, dpo_rate, simpo, decoding = AUTHORS[name]
    setting = paper.setting(name).setting
    assert setting.start.model == start and setting.start.revision
    given = setting.pairs
    assert (given.train.data, given.train.split, given.heldout_split, given.heldout) == (data, split, heldout, None)
    assert (given.max_length, given.max_prompt_length) == lengths
    assert plain(setting.training) == {
        "epochs": 1,
        "batch_size": 128,
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "precision": "bf16",
    }
    runs = {method: paper.run(name, method).method for method in ("dpo", "simpo", "simpo_no_ln", "simpo_no_margin")}
    assert (runs["dpo"].learning_rate, runs["dpo"].beta, runs["dpo"].label_smoothing) == (dpo_rate, 0.01, 0.0)
    assert (runs["simpo"].learning_rate, runs["simpo"].beta, runs["simpo"].gamma) == simpo
    assert (runs["simpo"].loss_type, runs["simpo"].label_smoothing, runs["simpo"].sft_weight) == ("sigmoid", 0.0, 0.0)
    assert name not in RATIOS or runs["simpo"].gamma / runs["simpo"].beta == pytest.approx(RATIOS[name])
    assert (runs["simpo_no_ln"].learning_rate, runs["simpo_no_ln"].beta, runs["simpo_no_ln"].gamma) == simpo
    assert (runs["simpo_no_margin"].learning_rate, runs["simpo_no_margin"].beta, runs["simpo_no_margin"].gamma) == (*simpo[:2], 0.0)
    answering = setting.decoding.alpacaeval2
    assert (answering.temperature, answering.max_tokens, answering.top_p) == (*decoding, 1.0)
    assert paper.run(name, "simpo").seed == 42


@pytest.mark.slow
def test_sft_and_on_policy_data_are_the_authors(paper: Plan) -> None:
    made = {name: {part for part in stage_configs.MADE_HERE if paper.setting(name).setting[part] is not None} for name in AUTHORS}
    on_policy = dict.fromkeys(RANKED_BY, {"generate", "annotate"})
    assert made == {"mistral_base": set(), "llama3_base": {"sft"}} | on_policy
    tuned = plain(paper.setting("llama3_base").setting.sft)
    assert (tuned["model"], tuned["data"]["data"], tuned["data"]["split"]) == (
        "meta-llama/Meta-Llama-3-8B",
        "HuggingFaceH4/ultrachat_200k",
        "train_sft",
    )
    given = {key: tuned["training"][key] for key in ("learning_rate", "epochs", "batch_size", "max_length", "scheduler", "warmup_ratio")}
    expected = {"learning_rate": 2e-5, "epochs": 1, "batch_size": 128, "max_length": 2048, "scheduler": "cosine", "warmup_ratio": 0.1}
    assert given == expected
    for name, reward_model in RANKED_BY.items():
        setting = paper.setting(name).setting
        sampled = {key: setting.generate[key] for key in ("n", "temperature", "top_p", "max_tokens")}
        assert sampled == {"n": 5, "temperature": 0.8, "top_p": 0.95, "max_tokens": 4096}
        assert (setting.generate.prompts.data, setting.generate.prompts.split) == ULTRAFEEDBACK[:2]
        assert stage_configs.NOT_READY[setting.annotate.model] == reward_model


def test_assets_are_pinned_and_their_names_are_apart(paper: Plan) -> None:
    """One folder may mirror them all (ASSETS_DIR): no two have the same name; what is fetched by address names a commit."""
    assets = [(name, asset) for benchmark in paper.benchmarks for name, asset in paper.base.benchmarks[benchmark].assets.items()]
    assert len({name for name, _ in assets}) == len(assets) == 9
    for _, asset in assets:
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256) and asset.licence
        assert asset.package or re.search(r"/[0-9a-f]{40}/", asset.url)
    for benchmark in paper.benchmarks:
        config = paper.base.benchmarks[benchmark]
        named = {config[key] for key in ("questions", "baseline", "references", "template", "gamed") if config[key]}
        assert named == {f"results/assets/{benchmark}/{name}" for name in config.assets}


# -- the plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_dry_run_plans_table_4_and_nothing_else(tmp_path: Path, paper: Plan) -> None:
    command = [sys.executable, "-m", "snakemake", "-d", str(tmp_path), "-n", "results/table4.csv", "--config", "scale=paper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    planned = [path.strip() for line in re.findall(r"^ +output: (.*)$", said, re.MULTILINE) for path in line.split(",")]
    expected = {
        *(f"results/table4.{kind}" for kind in ("csv", "txt", "html")),
        *(f"results/assets/{benchmark}/manifest.json" for benchmark in FILES),
    }
    for setting in AUTHORS:
        expected |= {f"results/{setting}/{part}/manifest.json" for part in ("data", "reference")}
        expected |= {f"results/{setting}/runs/{method}/manifest.json" for method in paper.scale["methods"] if method != "sft"}
        for run in paper.scale["methods"]:
            for benchmark, names in FILES.items():
                expected |= {f"results/{setting}/runs/{run}/eval/{benchmark}/{name}" for name in (*names, "scores.json")}
    assert set(planned) == expected
    assert len(planned) == len(set(planned))


@pytest.mark.slow
def test_what_a_user_may_make_has_its_configuration_and_what_is_not_ready_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned("paper")
    made = {str(path) for stage in ("sft", "generate", "annotate") for path in Path("results").glob(f"*/{stage}/config.yaml")}
    assert made == {"results/llama3_base/sft/config.yaml", *(f"results/{name}/generate/config.yaml" for name in RANKED_BY)}


@pytest.mark.parametrize("name", RANKED_BY)
@pytest.mark.slow
def test_pairs_of_a_reward_model_that_is_not_ready_stop_the_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_given = compose.part_of_conf

    def changed(group: str, part: str) -> DictConfig:
        if (group, part) != ("setting", name):
            return as_given(group, part)
        made = {"train": {"data": "results/${setting.name}/annotate/scored.jsonl"}, "heldout": 2000, "heldout_split": None}
        return OmegaConf.merge(as_given(group, part), {"pairs": made})  # type: ignore[return-value]

    monkeypatch.setattr(compose, "part_of_conf", changed)
    with pytest.raises(UserError, match=rf"^not ready: {RANKED_BY[name]} \(conf/setting/{name}.yaml, annotate.model\); README.md"):
        planned("paper")


# -- the real schemas -----------------------------------------------------------------------------------------------------


def ultrafeedback(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as HuggingFaceH4/ultrafeedback_binarized has them."""
    rows = []
    for row in tiny.pairs(n, seed):
        sides = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        scores = {key: row[key] for key in ("score_chosen", "score_rejected")}
        rows.append({"prompt": row["prompt"][0]["content"], "prompt_id": row["prompt_id"], **sides, "messages": sides["chosen"], **scores})
    return rows


def released(n: int) -> list[dict[str, Any]]:
    """Rows as princeton-nlp's on-policy sets have them: no scores of the two answers, but those of all five."""
    rows = []
    for row in ultrafeedback(n):
        texts = [row["chosen"][-1]["content"], row["rejected"][-1]["content"], "w1", "w2", "w3"]
        kept = {key: row[key] for key in ("prompt_id", "prompt", "chosen", "rejected")}
        rows.append({**kept, "all_generated_responses": texts, "all_rm_scores": [0.9, 0.1, 0.5, 0.4, 0.3]})
    return rows


def ultrachat(n: int) -> list[dict[str, Any]]:
    """Rows as HuggingFaceH4/ultrachat_200k has them: several turns."""
    rows = []
    for one, two in zip(tiny.pairs(n), tiny.pairs(n, seed=1), strict=True):
        messages = [*one["prompt"], *one["chosen"], *two["prompt"], *two["chosen"]]
        rows.append({"prompt": one["prompt"][0]["content"], "prompt_id": one["prompt_id"], "messages": messages})
    return rows


def data_set(folder: str, **splits: list[dict[str, Any]]) -> str:
    """A data set's folder with a parquet file a split, as on the hub."""
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(f"{folder}/data/{split}-00000-of-00001.parquet")
    return f"./{folder}"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, no network, and the hub's cache of data sets and models below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    yield tmp_path


def source(data: str, split: str | None = None, revision: str | None = None) -> DictConfig:
    return OmegaConf.create({"data": data, "revision": revision, "split": split})


def test_rows_are_the_same_from_parquet_and_from_json_lines(work: Path) -> None:
    """read_records: nested messages and lists of scores survive, each split is its own, and a manifest can name the files."""
    schemas = {"ultrachat": ultrachat(4), "ultrafeedback": ultrafeedback(4), "released": released(4)}
    for name, rows in schemas.items():
        folder = data_set(name, train_prefs=rows, test_prefs=rows[:1])
        files.write_jsonl(f"{name}.jsonl", rows)
        assert read_records(source(folder, "train_prefs")) == read_records(source(f"{name}.jsonl")) == rows
        assert read_records(source(folder, "train_prefs"), "test_prefs") == rows[:1]
        assert inputs_of(source(folder)) == [f"{name}/data/{split}-00000-of-00001.parquet" for split in ("test_prefs", "train_prefs")]
        assert inputs_of(source(f"{name}.jsonl")) == [f"{name}.jsonl"]
    assert inputs_of(source("HuggingFaceH4/ultrachat_200k")) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("./known", "train"), r"data \./known, split 'train', cannot be read: .*train.*train_prefs"),
        (("./known", None), r"data \./known is a Hugging Face data set: give its split"),
        (("./unknown", "train"), r"data \./unknown does not exist; replace it"),
        (("unknown.jsonl", None), r"data unknown\.jsonl does not exist; replace it"),
        (("results/s/annotate/scored.jsonl", None), r"does not exist; make it again with: snakemake .*results/s/annotate/manifest\.json"),
        (("org/unknown", "train", "abc"), r"data org/unknown at revision abc, split 'train', cannot be read: .*; give a hub id"),
    ],
)
def test_data_that_cannot_be_read_is_one_sentence(work: Path, wanted: tuple[Any, ...], message: str) -> None:
    data_set("known", train_prefs=ultrafeedback(2))
    with pytest.raises(UserError, match=message) as error:
        read_records(source(*wanted))
    assert "\n" not in str(error.value)


# -- the real families ----------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "llama3_instruct": (tiny.llama, tiny.LLAMA3, "<|eot_id|>"),
    "mistral_base": (tiny.mistral, tiny.ZEPHYR, "</s>"),
    "gemma2_it": (tiny.gemma2, tiny.GEMMA, "</s>"),
}


def start_model(setting: str, folder: str | Path) -> str:
    """A checkpoint as Transformers saves it, of the setting's family and with its template."""
    model, template, eos = FAMILIES[setting]
    model().save_pretrained(folder)
    tiny.tokenizer(template, eos=eos).save_pretrained(folder)
    return f"./{folder}"


def in_the_cache(hub: Path, name: str, revision: str) -> Path:
    """The folder of a hub id's revision in a cache of the hub."""
    snapshot = hub / f"models--{name.replace('/', '--')}/snapshots/{revision}"
    snapshot.mkdir(parents=True)
    return snapshot


def stage(module: Any, monkeypatch: pytest.MonkeyPatch, path: str, micro_batch: int = 4, **changes: Any) -> dict[str, Any]:
    """Run a stage as its rule does, on the configuration ``path`` of the plan with ``changes``; its manifest."""
    files.write_text(path, OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(path), changes)))
    given = {"micro_batch": micro_batch, "token_budget": 100}
    knobs = [f"{key}={value}" for key, value in given.items() if key in knobs_of(module.__name__.rpartition(".")[2])]
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", path, "--runtime", *knobs])
    module.main()
    return files.read_manifest(Path(path).parent)


@pytest.mark.parametrize("setting", FAMILIES)
def test_log_probabilities_are_those_of_a_plain_eager_forward(work: Path, setting: str) -> None:
    """fastest_correct_layout: sliding windows and both of Gemma-2's soft caps are as in a forward of each text with eager attention."""
    folder = start_model(setting, "model")
    tokenizer = models.load_tokenizer(folder)
    limits: dict[str, Any] = {"max_length": 200, "max_prompt_length": 100, "empty_system": setting == "mistral_base"}
    rows = tokenize_rows(tiny.pairs(6), tokenizer, "pairs", **limits).pairs
    assert max(len(row["prompt"]) + len(row["chosen"]) for row in rows) > 16  # longer than the sliding windows
    plainly = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = models.load_model(folder).eval()
    layout = fastest_correct_layout(model, rows, "fp32")
    assert layout == "shared"
    with torch.no_grad(), attention_layout(model, layout):
        found = answer_logps(model, **collate(rows, layout))
        assert torch.allclose(found, torch.stack(tiny.batch_parts(plainly, rows)[0]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("setting", FAMILIES)
@pytest.mark.slow
def test_a_setting_trains_from_a_real_schema(work: Path, monkeypatch: pytest.MonkeyPatch, paper: Plan, setting: str) -> None:
    """stages.pairs and stages.train with SimPO, as planned but for model and data: the authors' precision, lengths and batch.

    Two epochs of a batch each, as the first step of a warm-up moves nothing.
    """
    start = start_model(setting, "start")
    split, heldout = AUTHORS[setting][1][1:]
    rows = ultrafeedback(20) if split == "train_prefs" else released(20)
    data = data_set("data", **{split: rows[4:], heldout: rows[:4]})
    made = stage(pairs, monkeypatch, paper.stage_config("pairs", setting=setting), train={"data": data, "revision": None})
    assert (made["pairs"]["train"], made["pairs"]["heldout"]) == (16, 4)
    assert [row["prompt_id"] for row in files.read_rows(f"results/{setting}/data/heldout.jsonl")] == ["0", "1", "2", "3"]
    changes: dict[str, Any] = {"model": start, "revision": None, "method": {"epochs": 2}}
    manifest = stage(train, monkeypatch, paper.stage_config("train", setting=setting, run="simpo"), **changes)
    config = manifest["config"]
    assert (config["precision"], config["method"]["batch_size"], manifest["steps"]) == ("bf16", 128, 2)
    log = files.read_rows(f"results/{setting}/runs/simpo/train.jsonl")
    assert math.isfinite(log[0]["loss"]) and log[0]["grad_norm"] > 0
    trained = models.load_model(f"results/{setting}/runs/simpo/model")
    before = models.load_model(start)
    assert trained.config.model_type == before.config.model_type
    moved = [float((a - b).detach().abs().max()) for a, b in zip(trained.parameters(), before.parameters(), strict=True)]
    assert 0.5 < max(moved) / AUTHORS[setting][4][0] < 1.5  # Adam's first steps are of the learning rate's size: fp32 weights hold them


@pytest.mark.slow
def test_dpo_reads_a_reference_of_a_hub_id_and_revision(work: Path, monkeypatch: pytest.MonkeyPatch, paper: Plan) -> None:
    """stages.reference, stages.train: a hub id at a revision is the folder with the same weights; the first step of DPO costs log 2."""
    name, revision = "org/tiny-llama", "0123456789abcdef0123456789abcdef01234567"
    start = start_model("llama3_instruct", "start")
    shutil.copytree(start, in_the_cache(work / "hub", name, revision), dirs_exist_ok=True)
    data = data_set("data", train=released(20)[4:], test=released(4))
    stage(pairs, monkeypatch, paper.stage_config("pairs", setting="llama3_instruct"), train={"data": data, "revision": None})
    named = {"model": name, "revision": revision}
    stage(reference, monkeypatch, paper.stage_config("reference", setting="llama3_instruct"), micro_batch=8, **named)
    stage(train, monkeypatch, paper.stage_config("train", setting="llama3_instruct", run="dpo"), model=start, revision=None)
    assert files.read_rows("results/llama3_instruct/runs/dpo/train.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    with pytest.raises(UserError, match="model org/tiny-llama at revision 89ab.* cannot be loaded"):
        models.load_tokenizer(name, "89abcdef" * 5)
    with pytest.raises(UserError, match="model org/unknown cannot be loaded"):
        models.load_model("org/unknown")


@pytest.mark.slow
def test_sft_reads_ultrachat(work: Path, monkeypatch: pytest.MonkeyPatch, paper: Plan) -> None:
    """stages.sft: UltraChat's split by name, all turns of it, in the authors' precision and batch."""
    start = start_model("llama3_instruct", "start")
    data = data_set("chats", train_sft=ultrachat(12), test_sft=ultrachat(2))
    changes: dict[str, Any] = {"model": start, "revision": None, "data": {"data": data, "revision": None}}
    manifest = stage(sft, monkeypatch, paper.stage_config("sft", setting="llama3_base"), micro_batch=1, **changes)
    assert (manifest["conversations"], manifest["steps"]) == (12, 1)
    tokenizer = models.load_tokenizer(start)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in ultrachat(12)]
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    assert tokens <= manifest["tokens"] <= tokens + 12  # an EOS each, where the template writes none


# -- the authors' cut -----------------------------------------------------------------------------------------------------

HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = (tiny.LLAMA3, "<|eot_id|>", "<s>" + HEADER.format("user"), "<|eot_id|>", HEADER.format("assistant"), "<|eot_id|>")
# Template, EOS, and what stands before and after the question and the answer: rendered from the authors' run_simpo.py.
TURNS: dict[str, tuple[str, str, str, str, str, str]] = {
    "mistral_base": (tiny.ZEPHYR, "</s>", "<s><|system|>\n</s>\n<|user|>\n", "</s>\n", "<|assistant|>\n", "</s>\n</s>"),
    "mistral_instruct": ("", "</s>", "<s>[INST] ", " [/INST]", " ", " </s>"),
    "llama3_base": LLAMA3,
    "llama3_instruct": LLAMA3,
    "llama3_instruct_v02": LLAMA3,
    "gemma2_it": (tiny.GEMMA, "</s>", "<s><start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n</s>"),
}


@pytest.mark.parametrize("setting", TURNS)
def test_texts_are_rendered_and_cut_as_the_authors(paper: Plan, setting: str) -> None:
    """whole_pair and cut_pair with a setting's lengths and system turn, from messages to tokens; a text of n words has 2n - 1 tokens here.

    The cases are those that were run through the authors' tokenize_row, lengths between them.
    """
    template, eos, *around = TURNS[setting]
    tokenizer = tiny.tokenizer(paper.setting(setting).setting.start.chat_template or template, eos=eos)
    lengths = paper.setting(setting).setting.pairs
    limits = {key: lengths[key] for key in ("max_length", "max_prompt_length")}
    left = {2048: 248, 1024: 512}[limits["max_length"]]

    def cut(*words: int) -> tuple[dict[str, list[int]], list[list[int]]]:
        """The tokens of a question and two answers of so many words, and all of them uncut."""
        question, *answers = (" ".join(["w1"] * n) for n in words)
        turns = [[{"role": role, "content": text}] for role, text in zip(("user", *["assistant"] * 2), (question, *answers), strict=True)]
        row = dict(zip(("prompt", "chosen", "rejected"), turns, strict=True))
        texts = [around[0] + question + around[1], *(around[2] + answer + around[3] for answer in answers)]
        pair = whole_pair(row, tokenizer, "row 1", empty_system=lengths.empty_system)
        return cut_pair(pair, "row 1", **limits), tokenizer(texts, add_special_tokens=False)["input_ids"]

    tokens, whole = cut(50, 100, 150)  # all fit: nothing is cut
    assert [tokens["prompt"], tokens["chosen"], tokens["rejected"]] == whole
    tokens, whole = cut(50, 300, 1000)  # one long answer cuts the other too, and takes EOS off both
    assert [tokens["prompt"], tokens["chosen"], tokens["rejected"]] == [whole[0], whole[1][:left], whole[2][:left]]
    assert len(whole[1]) > left and tokenizer.eos_token_id not in (tokens["chosen"][-1], tokens["rejected"][-1])
    tokens, whole = cut(50, 100, 1000)  # an answer that is short enough is left whole
    assert [tokens["chosen"], tokens["rejected"]] == [whole[1], whole[2][:left]]
    tokens, whole = cut(1000, 20, 40)  # a long question loses its beginning, and BOS with it
    assert tokens["prompt"] == whole[0][-limits["max_prompt_length"] :] and tokenizer.bos_token_id not in tokens["prompt"]
    assert [tokens["chosen"], tokens["rejected"]] == whole[1:]


@pytest.mark.parametrize("setting", TURNS)
def test_a_question_is_asked_as_the_model_was_trained(paper: Plan, setting: str) -> None:
    """question_tokens: the authors' eval/alpacaeval2/templates, with one BOS: their Mistral-Base prompt, too, has an empty system turn."""
    template, eos, *around = TURNS[setting]
    given = paper.setting(setting).setting
    tokenizer = tiny.tokenizer(given.start.chat_template or template, eos=eos)
    tokens = question_tokens([{"role": "user", "content": "w1 w2"}], tokenizer, empty_system=given.pairs.empty_system)
    header = "" if setting == "mistral_instruct" else around[2]
    assert tokens == tokenizer(around[0] + "w1 w2" + around[1] + header, add_special_tokens=False)["input_ids"]
    composed = OmegaConf.create(paper.composed("answer", setting=setting, run="simpo")[1])
    assert (composed.empty_system, list(composed.stop_token_ids)) == (given.pairs.empty_system, given.stop_token_ids)
