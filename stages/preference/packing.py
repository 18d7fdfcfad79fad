"""Preference pairs as the batches that a model reads: packs under a token budget, each prompt once for both answers.

A global batch of pairs is split into packs. The split changes the speed and never a loss. A pack of n pairs has one of three layouts:

    shared   one row; of each pair prompt, chosen, rejected. The prompt is computed once. stages/preference/attention.py lets the rejected
             answer read the prompt and itself alone, at the positions directly after the prompt
    packed   one row; of each pair prompt, chosen, prompt, rejected. Transformers keeps them apart by their position ids
    padded   2n rows, the chosen first, padded on the right, where causal attention does not read

In: rows {"prompt": [ids], "chosen": [ids], "rejected": [ids]} (stages/preference/data.py). Out: dicts of tensors,

    input_ids     [R, T]   without each answer's last token, which predicts nothing
    position_ids  [R, T]   not in padded
    source        [N]      positions in the flattened [R * T] whose hidden state predicts a trained token
    target        [N]      that token
    sequence      [N]      its sequence: 0 to n-1 the chosen, n to 2n-1 the rejected answers
    length        [2n]     trained tokens of each sequence
    shared_prompt dict     in shared: the sequences as attention needs them (below)

The indices are made here, on the host. A boolean mask on the GPU would make the host wait in every pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.preference.data import Pair

LAYOUTS = ("shared", "packed", "padded")
Batch = dict[str, Any]


def tokens_of(pair: Pair, layout: str) -> int:
    """The tokens of a pair that a model reads in a layout. In padded these are two rows as wide as the longer answer needs."""
    prompt, *answers = len(pair["prompt"]), len(pair["chosen"]) - 1, len(pair["rejected"]) - 1
    if layout == "shared":
        return prompt + sum(answers)
    return 2 * prompt + sum(answers) if layout == "packed" else 2 * (prompt + max(answers))


def pack(pairs: Sequence[Pair], budget: int, layout: str, multiple: int = 1) -> list[list[int]]:
    """The rows of ``pairs`` in packs.

    The pairs are sorted by length and cut into equal shares. The sequences of a pack have about one length, and processes that take the
    packs in turn have about the same work. A pair longer than the budget has a pack of its own. If there are not enough pairs, some packs
    are empty.

    budget: tokens of a pack at most
    layout: one of LAYOUTS
    multiple: the number of packs is a multiple of it, and as small as possible
    """
    sizes = [tokens_of(pair, layout) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda row: -sizes[row])
    number = max(1, -(-sum(sizes) // budget))
    while True:
        number = -(-number // multiple) * multiple
        packs: list[list[int]] = []
        done = load = share = 0
        for row in order:
            size, mine = sizes[row], (done + sizes[row] // 2) * number // sum(sizes)
            load = sizes[packs[-1][0]] * (len(packs[-1]) + 1) if layout == "padded" and packs else load + size
            if not packs or mine != share or load > budget:
                packs.append([])
                load = size
            packs[-1].append(row)
            done, share = done + size, mine
        if len(packs) <= number:
            return packs + [[] for _ in range(-len(packs) % multiple)]
        number = len(packs)


def collate(pairs: Sequence[Pair], layout: str) -> Batch:
    """The tensors of one pack (see the top of the file)."""
    return _padded(pairs) if layout == "padded" else _in_a_row(pairs, shared=layout == "shared")


def _in_a_row(pairs: Sequence[Pair], shared: bool) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    sources: list[list[int]] = [[] for _ in range(2 * len(pairs))]
    sequences: list[list[int]] = []  # in shared: the places that each sequence reads, in the order of their positions
    queries: list[int] = []  # how many of them, the last ones, are its own
    for row, pair in enumerate(pairs):
        prompt = pair["prompt"]
        for side, answer in enumerate((pair["chosen"], pair["rejected"])):
            if side == 0 or not shared:
                start = len(tokens)  # of the prompt
                tokens += prompt
                positions += range(len(prompt))
            first = len(tokens)
            tokens += answer[:-1]
            positions += range(len(prompt), len(prompt) + len(answer) - 1)
            sources[side * len(pairs) + row] = [start + len(prompt) - 1, *range(first, len(tokens))]
            if own := len(tokens) - (first if side else start):
                sequences.append([*range(start, start + len(prompt)), *range(first, len(tokens))])
                queries.append(own)
    batch = {"input_ids": torch.tensor([tokens]), "position_ids": torch.tensor([positions]), **_targets(pairs, sources)}
    return batch | {"shared_prompt": _shared_prompt(sequences, queries)} if shared else batch


def _padded(pairs: Sequence[Pair]) -> Batch:
    texts = [pair["prompt"] + pair[side][:-1] for side in ("chosen", "rejected") for pair in pairs]
    width = max(map(len, texts))
    input_ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])  # any token pads
    prompts = [len(pair["prompt"]) for pair in pairs] * 2
    sources = [list(range(row * width + prompts[row] - 1, row * width + len(text))) for row, text in enumerate(texts)]
    return {"input_ids": input_ids, **_targets(pairs, sources)}


def _targets(pairs: Sequence[Pair], sources: list[list[int]]) -> Batch:
    answers = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    length = torch.tensor([len(answer) for answer in answers])
    return {
        "source": torch.tensor([place for source in sources for place in source]),
        "target": torch.tensor([token for answer in answers for token in answer]),
        "sequence": torch.repeat_interleave(torch.arange(len(answers)), length),
        "length": length,
    }


def _shared_prompt(sequences: list[list[int]], queries: list[int]) -> dict[str, Any]:
    """The sequences of a shared pack, for both ways to compute attention (stages/preference/attention.py).

    For the kernel: ``keys`` [K], the places in the pack that each sequence reads, one sequence after the other; ``key_ends`` and
    ``query_ends`` [S + 1], where each sequence's keys and queries end; ``longest``, the most queries and keys of a sequence. A sequence's
    queries are the last of its keys, and stand in the pack in this order. For the rectangle: ``table`` [S, longest], the same places;
    ``places`` [T], where each token's result stands in it.
    """
    longest = max(map(len, sequences))
    ends = [0]
    places: list[int] = []
    for row, (sequence, own) in enumerate(zip(sequences, queries, strict=True)):
        ends.append(ends[-1] + len(sequence))
        places += range(row * longest + len(sequence) - own, row * longest + len(sequence))
    return {
        "keys": torch.tensor([place for sequence in sequences for place in sequence]),
        "key_ends": torch.tensor(ends, dtype=torch.int32),
        "query_ends": torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32),
        "longest": (max(queries), longest),
        "table": torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences]),
        "places": torch.tensor(places),
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device. The host does not wait where its memory is pinned."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return {key: move(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    return {key: move(value) for key, value in batch.items()}
