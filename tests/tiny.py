"""Tiny random Llama, Mistral and Gemma-2, and word-level tokenizers with chat templates in the style of the paper's."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from stages.preference.logps import answer_logps, attention_layout
from stages.preference.trainer import TrainingPair, global_batch, log_ratios, model_inputs, pair_sums

WORDS = [f"w{n}" for n in range(40)]
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>", "[INST]", "[/INST]"]
MARKS += ["<start_of_turn>", "<end_of_turn>", "system", "user", "assistant", "model", "\n", "\n\n", " "]

LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
# As the authors write it for Mistral-Instruct: a system turn is merged into the first user turn.
MISTRAL = (
    "{% set ns = namespace(before='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.before = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + (ns.before + message['content']).strip() + ' [/INST]' }}{% set ns.before = '' %}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# As Google's: refuses a system turn, and an assistant's turn by itself.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') }}"
    "{{ '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def tokenizer(template: str = LLAMA3, bos: str = "<s>", eos: str = "</s>") -> PreTrainedTokenizerFast:
    """One token a word, mark, blank or line break, so that a token count can be read off a text."""
    vocabulary = ["<unk>", "<s>", "</s>", *MARKS, *WORDS]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    marks = "|".join(["</?s>", *(mark.translate({ord(c): f"\\{c}" for c in "|[]"}) for mark in MARKS[:10]), "\n\n", "\n", " "])
    core.pre_tokenizer = Split(Regex(marks), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, unk_token="<unk>")
    fast.chat_template = template
    return fast


# Two layers, hidden size 32, random weights that differ enough for losses to say something.
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    set_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes))


def double(model: Any) -> Any:
    """``model`` in float64 throughout: Transformers' RMSNorm computes in float32 whatever its weights are, so that the gradient of a prompt
    that is computed once differs from the sum over two in the eighth digit."""
    for module in model.double().modules():
        if type(module).__name__ in ("LlamaRMSNorm", "MistralRMSNorm"):
            module.forward = lambda x, m=module: m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
    return model


def mistral(seed: int = 0, **changes: Any) -> MistralForCausalLM:
    """A Mistral whose attention reaches eight tokens back: less than most texts of ``pairs``."""
    set_seed(seed)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8, **changes))


def gemma2(seed: int = 0, **changes: Any) -> Gemma2ForCausalLM:
    """A Gemma-2, its odd layers with a sliding window; its soft caps are so low that leaving one out shows."""
    set_seed(seed)
    caps = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, pad_token_id=0, sliding_window=8, **caps, **changes))


def pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as stages/pairs.py writes them, of many lengths; a good answer opens with the question's first word, which can be learnt."""
    draw = random.Random(seed)

    def answer(start: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": " ".join([start, *draw.choices(WORDS, k=draw.randrange(1, 12))])}]

    rows = []
    for number in range(n):
        question = draw.choices(WORDS[:20], k=draw.randrange(2, 8))
        prompt = [{"role": "user", "content": " ".join(question)}]
        sides = {"chosen": answer(question[0]), "rejected": answer(draw.choice(WORDS[20:]))}
        rows.append({"prompt_id": str(number), "prompt": prompt, **sides, "score_chosen": 2.0, "score_rejected": 1.0})
    return rows


def batch_parts(model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> tuple[list[torch.Tensor], list[int]]:
    """An independent computation of log π(y|x) and |y| for each sequence, the chosen first: one unpadded forward each, logits, gather."""
    sums, lengths = [], []
    for side in ("chosen", "rejected"):
        for row in rows:
            ids = torch.tensor([row["prompt"] + row[side]])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
            start = len(row["prompt"]) - 1
            sums.append(logps[start:].gather(1, ids[0, 1 + start :, None]).sum())
            lengths.append(len(row[side]))
    return sums, lengths


def engine_loss(
    model: Any, rows: list[Any], objective: Any, references: list[Any] | None = None, *, budget: int = 60, layout: str = "shared"
) -> torch.Tensor:
    """The loss of ``rows`` as one global batch, through packs as the trainer makes them, with its graph.

    ``references``: of each row the reference's sums (chosen, rejected), or ((chosen, rejected), mismatched pair, its sums).
    """
    given = references or [None] * len(rows)
    extra = [part if part and isinstance(part[0], tuple) else (part,) for part in given]
    batch = global_batch([TrainingPair(row, *part) for row, part in zip(rows, extra, strict=True)], budget, layout)
    assert sum(pack["count"] for pack in batch["packs"]) == len(rows)
    with attention_layout(model, layout):
        with torch.no_grad():
            ratios = [log_ratios(answer_logps(model, **model_inputs(pack)), pack) for pack in batch["mismatched"]]
        kl = torch.stack(ratios).sum() / (2 * len(rows)) if ratios else None
        sums = [pair_sums(answer_logps(model, **model_inputs(pack)), pack, batch["mean_chosen_length"], kl) for pack in batch["packs"]]
    return torch.stack([objective(part)[0].sum() for part in sums]).sum() / batch["pairs"]
