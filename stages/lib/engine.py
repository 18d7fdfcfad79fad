"""How the stages run vLLM: one engine in this process, and a sampling seed for each prompt.

The seeds are hashes of the prompts' texts, so an answer depends neither on the order of the prompts nor on the rest of the batch.
"""

from __future__ import annotations

import hashlib
import os
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
    """vLLM's output for each prompt. UserError, before anything is generated, if a prompt leaves no room for an answer."""
    for number, prompt in enumerate(prompts, start=1):
        if (length := len(prompt["prompt_token_ids"])) >= (room := engine.model_config.max_model_len):
            raise UserError(
                f"prompt {number} of {len(prompts)} has {length:,} tokens, and the model reads {room:,}; take a model with a longer context"
                " (max_position_embeddings in its config.json), or shorter prompts"
            )
    # vLLM divides by the elapsed time of its bar, which is 0 for a bar that TQDM_DISABLE switches off.
    return list(engine.generate(prompts, sampling, use_tqdm=not os.environ.get("TQDM_DISABLE")))


def cache_bytes(shape: PreTrainedConfig, max_length: int) -> int:
    """The size of the cache of keys and values on a CPU, if VLLM_CPU_KVCACHE_SPACE (GiB) is not set.

    It holds 64 conversations of ``max_length`` tokens in at most 1 GiB, and never less than two. Every layer counts as wide as the hidden
    state. vLLM writes to the whole cache at the start, which takes three seconds a GiB.
    """
    one = max_length * 2 * shape.num_hidden_layers * shape.hidden_size * 4
    return min(64 * one, max(2 * one, 2**30))


def swap_model(engine: Any, model: str) -> None:
    """Give a running engine the weights in another folder. The model must have the shape of the one before it."""
    engine.collective_rpc("reload_weights", kwargs={"weights_path": models.checked_model(model)})
    if not engine.reset_prefix_cache():  # it holds keys and values by the old weights
        raise RuntimeError("vLLM could not reset its prefix cache")


def start_engine(config: DictConfig, max_length: int) -> Any:
    """vLLM with the model, for conversations of ``max_length`` tokens, or of the model's limit if that is lower."""
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
        # Chunked prefill of a seeded request needs the random generator's offset, which a CPU's does not have.
        arguments |= {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_length, 4096),
            "kv_cache_memory_bytes": cache_bytes(shape, max_length),
        }
    return LLM(**arguments)
