"""vLLM as the stages start it: one engine in this process, each prompt with a sampling seed of its own.

With seeds made from the prompts' texts an answer depends neither on the order nor on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import os
from io import StringIO
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from stages.lib import models
from stages.lib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def seed_of(text: str, seed: int) -> int:
    """A question's own sampling seed, in [0, 2**31)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:4]) >> 1


def generate(engine: Any, prompts: list[Any], sampling: list[Any]) -> list[Any]:
    """What vLLM writes to each prompt, with its progress bar where TQDM_DISABLE leaves bars on: it divides by the time that a bar shows.

    UserError where a prompt leaves no room for an answer, before anything is written.
    """
    from tqdm import tqdm

    for number, prompt in enumerate(prompts, start=1):
        if (length := len(prompt["prompt_token_ids"])) >= (room := engine.model_config.max_model_len):
            raise UserError(
                f"prompt {number} of {len(prompts)} has {length:,} tokens, and the model reads {room:,}; it needs one with a longer context"
                " (max_position_embeddings in its config.json), or prompts that fit"
            )
    with tqdm(file=StringIO()) as bar:
        shown = not bar.disable
    return list(engine.generate(prompts, sampling, use_tqdm=shown))


def cache_bytes(shape: PreTrainedConfig, max_length: int) -> int:
    """Of a CPU's cache of keys and values, where VLLM_CPU_KVCACHE_SPACE (GiB) does not say: 64 conversations of the longest, at most 1 GiB
    but always two. Every layer is taken to be as wide as the hidden state. vLLM writes to all of it at the start, three seconds a GiB."""
    one = max_length * 2 * shape.num_hidden_layers * shape.hidden_size * 4
    return min(64 * one, max(2 * one, 2**30))


def start_engine(config: DictConfig, max_length: int) -> Any:
    """vLLM over the model, in this process, for conversations of ``max_length`` tokens or of the model's own limit."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # halves the start
    import torch
    from transformers import AutoConfig
    from vllm import LLM

    with models.loading(config.model, config.revision):
        shape = AutoConfig.from_pretrained(config.model, revision=config.revision).get_text_config()
    max_length = min(max_length, shape.max_position_embeddings)
    arguments: dict[str, Any] = {"model": config.model, "revision": config.revision, "max_model_len": max_length}
    arguments |= {"load_format": "safetensors", "seed": 0}
    if not torch.cuda.is_available():
        # A CPU generator has no offset, which chunked prefill of a seeded request asks for; one thread a job, as everywhere.
        arguments |= {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_length, 4096),
            "kv_cache_memory_bytes": cache_bytes(shape, max_length),
        }
    return LLM(**arguments)
