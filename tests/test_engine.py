"""The engine of stages/preference: packs, the shared prompt, log-probabilities, and the same loss whichever way it is computed."""

from __future__ import annotations

import random
import signal
import sys
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from stages.lib import files
from stages.preference import attention, logps
from stages.preference.data import Pair, tokenize_rows
from stages.preference.logps import answer_logps, attention_layout, fastest_correct_layout
from stages.preference.objectives import dpo, kto, simpo
from stages.preference.packing import LAYOUTS, collate, pack, tokens_of
from stages.preference.trainer import TrainingPair, global_batch

SIMPO = {"beta": 2.0, "gamma": 0.5, "length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.2}
FAMILIES = {"llama": tiny.llama, "mistral": tiny.mistral, "gemma2": lambda: tiny.gemma2(attn_implementation="eager")}


def tokenized(n: int) -> list[Pair]:
    return tokenize_rows(tiny.pairs(n), tiny.tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False).pairs


@pytest.fixture(scope="module")
def rows() -> list[Pair]:
    """Pairs of many lengths, one much longer, one whose rejected answer is a single token: it has no token of its own in the pack."""
    return [*tokenized(9), {"prompt": [1] + [5] * 30, "chosen": [6] * 50 + [2], "rejected": [2]}]


# -- packs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packs_hold_each_pair_once_within_the_budget(layout: str) -> None:
    """packing.pack: every row once, no pack of several over the budget, a multiple of packs, shares about equal."""
    draw = random.Random(0)
    for _ in range(50):
        n, budget, multiple = draw.randrange(1, 60), draw.randrange(20, 400), draw.randrange(1, 5)
        pairs = [{side: [1] * draw.randrange(1, 60) for side in ("prompt", "chosen", "rejected")} for _ in range(n)]
        packs = pack(pairs, budget, layout, multiple)
        assert sorted(row for rows in packs for row in rows) == list(range(n))
        assert len(packs) % multiple == 0
        for rows in packs:
            assert len(rows) < 2 or collate([pairs[row] for row in rows], layout)["input_ids"].numel() <= budget
        if layout != "padded" and budget > 4 * max(tokens_of(pair, layout) for pair in pairs) and len(packs) > multiple == 1:
            loads = [sum(tokens_of(pairs[row], layout) for row in rows) for rows in packs]
            assert max(loads) - min(loads) <= 2 * max(tokens_of(pair, layout) for pair in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pack_holds_the_prompt_once_and_nothing_needless(rows: list[Pair], layout: str) -> None:
    """packing.collate: the tokens that ``tokens_of`` counts; in shared each prompt once, no answer's last token, no padding."""
    batch = collate(rows, layout)
    if layout != "padded":
        assert batch["input_ids"].numel() == sum(tokens_of(row, layout) for row in rows)
    if layout == "shared":
        assert batch["input_ids"].numel() == sum(len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) - 2 for row in rows)
    assert batch["length"].tolist() == [len(row[side]) for side in ("chosen", "rejected") for row in rows]
    assert batch["target"].tolist() == [token for side in ("chosen", "rejected") for row in rows for token in row[side]]


def test_every_process_has_as_many_packs(rows: list[Pair]) -> None:
    """trainer.global_batch: of 3 processes each has as many packs and each pair counts once, with fewer pairs than processes too."""
    for pairs in ([TrainingPair(row) for row in rows], [TrainingPair(rows[0]), TrainingPair(rows[1])]):
        shares = [global_batch(pairs, 60, "shared", process, 3)["packs"] for process in range(3)]
        assert len({len(share) for share in shares}) == 1
        assert sum(pack["count"] for share in shares for pack in share) == len(pairs)
        assert all(len(pack["length"]) for share in shares for pack in share)


# -- log-probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_every_layout_gives_the_models_own_log_probabilities(rows: list[Pair], family: str, layout: str) -> None:
    """packing, attention, logps: the sums and their gradient of unpadded forwards in float64: Llama's grouped heads, Mistral's window
    counted in positions, Gemma-2's windows and both soft caps (whose softmax Transformers computes in float32)."""
    model = tiny.double(FAMILIES[family]()).eval()
    tolerance = 1e-6 if family == "gemma2" else 1e-10
    expected = torch.stack(tiny.batch_parts(model, rows)[0])
    with attention_layout(model, layout):
        found = answer_logps(model, **collate(rows, layout))
        grads = torch.autograd.grad(found.sin().sum(), list(model.parameters()))
    wanted = torch.autograd.grad(expected.sin().sum(), list(model.parameters()))
    assert torch.allclose(found, expected, rtol=tolerance, atol=0)
    for (name, _), got, want in zip(model.named_parameters(), grads, wanted, strict=True):
        assert (got - want).norm() <= 100 * tolerance * want.norm(), name
    assert model.config._attn_implementation != attention.NAME


@pytest.mark.parametrize("window", [None, 7])
def test_the_kernel_is_called_as_it_aligns(rows: list[Pair], monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """attention._by_kernel: what it hands to torch's varlen_attn, whose mask is aligned at the right end and whose window does not count
    the token itself, gives what the rectangle gives."""
    import torch.nn.attention.varlen as varlen

    def aligned_right(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, scale: float, window_size: Any
    ) -> Tensor:
        assert cu_q is not cu_k  # torch takes another kernel, aligned at the left end, for one and the same tensor
        assert (cu_q.diff().max(), cu_k.diff().max()) == (max_q, max_k)
        parts = []
        for (q0, q1), (k0, k1) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
            place = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
            gap = place - torch.arange(k1 - k0)
            seen = (gap >= 0) & ((gap <= window_size[0]) if window_size[0] >= 0 else True)
            scores = torch.einsum("qhd,khd->hqk", q[q0:q1], k[k0:k1]) * scale
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v[k0:k1]))
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", aligned_right)
    batch = collate(rows, "shared")
    tokens = batch["input_ids"].numel()
    query, key, value = (torch.randn(tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    kernel, rectangle = (
        way(query, key, value, batch["shared_prompt"], 0.3, window)
        for way in (attention._by_kernel, partial(attention._in_a_rectangle, softcap=None))
    )
    assert torch.allclose(kernel, rectangle, rtol=1e-10, atol=1e-12)


def test_a_torch_without_the_kernel_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """attention._by_kernel, files.run: one sentence with what is missing and the next command."""
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    states, before = torch.zeros(4, 2, 8), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=r"error: torch .* has no torch.nn.attention.varlen.*make setup ENV=cuda"):
        files.run(lambda: print(attention._by_kernel(states, states, states, {}, 1.0, None)))
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_tiles_change_nothing(softcap: float | None) -> None:
    """logps.token_logps: in tiles of four tokens the values and gradients of plain log-softmax, in float64; so as one tile."""
    hidden, target = torch.randn(23, 32, dtype=torch.float64, requires_grad=True), torch.randint(64, (23,))
    weight = torch.randn(64, 32, dtype=torch.float64, requires_grad=True)
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    wanted = torch.autograd.grad(plain.sin().sum(), (hidden, weight))
    for tile in (64 * 4, 64 * 23):
        values = logps.token_logps(hidden, weight, target, softcap, tile)
        assert torch.allclose(values, plain, rtol=1e-12, atol=0)
        for got, want in zip(torch.autograd.grad(values.sin().sum(), (hidden, weight)), wanted, strict=True):
            assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_no_tensor_of_logits_is_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch, rows: list[Pair]) -> None:
    """logps.answer_logps: in forward and backward no tensor is larger than a tile and the largest weight, whatever the tokens."""
    model = tiny.llama(vocab_size=4096)
    batch = collate(rows, "shared")
    monkeypatch.setitem(logps.TILE, "cpu", 4096 * 3)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))])
            return result

    with Watch(), attention_layout(model, "shared"):
        answer_logps(model, **batch).sum().backward()
    assert len(batch["target"]) * 4096 > 10 * largest
    assert largest == max(4096 * 32, 4096 * 3)  # the embeddings


def test_half_precision_keeps_its_sums_in_float32(rows: list[Pair]) -> None:
    """logps.answer_logps: under bf16 autocast log-probabilities, their sums and the weights' gradients are float32, near those of fp32."""
    model = tiny.llama()
    found = []
    for half in (False, True):
        with attention_layout(model, "shared"), torch.autocast("cpu", torch.bfloat16, enabled=half):
            sums = answer_logps(model, **collate(rows, "shared"))
        found.append((sums.detach(), *torch.autograd.grad(sums.mean(), list(model.parameters()))))
    for full, half_ in zip(*found, strict=True):
        assert full.dtype == half_.dtype == torch.float32
        assert (half_ - full).norm() <= 0.05 * full.norm()


# -- layouts that are right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_architectures_share_the_prompt(rows: list[Pair], family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """logps.fastest_correct_layout: Llama, Mistral and Gemma-2 compute the prompt once, and the line says so."""
    assert fastest_correct_layout(FAMILIES[family]().eval(), rows, "fp32") == "shared"
    assert "layout: shared, attention shared_prompt, checked against eager" in capsys.readouterr().out


def test_an_attention_that_drops_a_soft_cap_is_found_out(rows: list[Pair], capsys: pytest.CaptureFixture[str]) -> None:
    """fastest_correct_layout: Gemma-2 under sdpa, which drops the soft cap, ends as padded and eager."""
    model = tiny.gemma2(attn_implementation="sdpa").eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "NAME", "sdpa")  # a function that knows nothing of the pack
        assert fastest_correct_layout(model, rows, "fp32") == "padded"
    assert model.config._attn_implementation == "eager"
    assert "not shared: " in (said := capsys.readouterr().out) and "not packed: " in said and "a token away from eager attention" in said


def test_an_architecture_without_the_shared_prompt_is_packed_or_padded(rows: list[Pair], capsys: pytest.CaptureFixture[str]) -> None:
    """logps.fastest_correct_layout: Llama without our attention is packed; Bloom, which knows none, is padded; the line says why."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "NAME", "sdpa")
        assert fastest_correct_layout(tiny.llama().eval(), rows, "fp32") == "packed"
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)).eval()
    assert fastest_correct_layout(bloom, rows, "fp32") == "padded"
    assert "layout: padded" in capsys.readouterr().out
    with torch.no_grad():
        found = answer_logps(bloom, **collate(rows, "padded"))
        assert torch.allclose(found, torch.stack(tiny.batch_parts(bloom, rows)[0]), rtol=1e-5)


# -- the same loss --------------------------------------------------------------------------------------------------------


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_in_float32_sharing_and_packing_change_nothing(rows: list[Pair]) -> None:
    """The engine in float32: shared packs against one padded batch, loss and gradients within 1e-5, whatever budget and order."""
    model, objective = tiny.llama(), partial(simpo, **SIMPO)
    whole = tiny.engine_loss(model, rows, objective, budget=10**6, layout="padded")
    wanted = gradients(model, whole)
    for layout in LAYOUTS:
        for budget in (1, 70, 300):
            order = random.Random(budget).sample(range(len(rows)), len(rows))
            loss = tiny.engine_loss(model, [rows[row] for row in order], objective, budget=budget, layout=layout)
            assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
            for got, want in zip(gradients(model, loss), wanted, strict=True):
                assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.fixture(scope="module")
def compared() -> tuple[Any, Any, list[Pair], list[Any]]:
    """A policy and a reference in float64, pairs, and what KTO needs of each: sums of pair and mismatched pair by unpadded forwards."""
    policy, reference, rows = tiny.double(tiny.llama()), tiny.double(tiny.llama(seed=1)), tokenized(6)
    others = [{**row, **{side: rows[(n + 1) % 6][side] for side in ("chosen", "rejected")}} for n, row in enumerate(rows)]
    with torch.no_grad():
        own, other = (torch.stack(tiny.batch_parts(reference, part)[0]).view(2, -1).T.tolist() for part in (rows, others))
    return policy, reference, rows, [(tuple(a), mismatched, tuple(b)) for a, mismatched, b in zip(own, others, other, strict=True)]


def trl_loss(kind: str, policy: Any, reference: Any, examples: list[dict[str, Any]], **settings: Any) -> Tensor:
    """The loss of TRL's DPOTrainer or KTOTrainer over one batch of token ids, with a live reference, and its graph."""
    import tempfile

    import trl
    from datasets import Dataset

    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    common = {"per_device_train_batch_size": len(examples), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": None}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_class, "_prepare_dataset", lambda self, dataset, *_: dataset)  # token ids, not texts
        args = config_class(folder, gradient_checkpointing=False, **common, **settings)
        trainer = trainer_class(policy, reference, args=args, train_dataset=Dataset.from_list(examples), processing_class=tiny.tokenizer())
        batch = trainer.data_collator(examples)
        return trainer.compute_loss(trainer.model, batch)


def test_dpo_is_trls(compared: Any) -> None:
    """The engine and objectives.dpo against TRL's DPOTrainer, whose head is float32 inside: loss and gradients within 2e-6."""
    policy, reference, rows, references = compared
    ours = tiny.engine_loss(policy, rows, partial(dpo, beta=0.1, label_smoothing=0.0), [given[0] for given in references])
    examples = [{f"{name}_ids": row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    theirs = trl_loss("DPO", policy, reference, examples, beta=0.1, loss_type="sigmoid")
    check_close(policy, ours, theirs)


def test_kto_is_trls(compared: Any) -> None:
    """The engine, its mismatched pairs and objectives.kto against TRL's KTOTrainer over one micro-batch of single labels, likewise."""
    policy, reference, rows, references = compared
    ours = tiny.engine_loss(policy, rows, partial(kto, beta=0.1, chosen_weight=1.0, rejected_weight=0.7), references)
    examples = [
        {"prompt_ids": row["prompt"], "completion_ids": row[side], "KL_completion_ids": given[1][side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row, given in zip(rows, references, strict=True)
    ]
    theirs = trl_loss("KTO", policy, reference, examples, beta=0.1, desirable_weight=1.0, undesirable_weight=0.7)
    check_close(policy, ours, theirs)


def check_close(model: Any, ours: Tensor, theirs: Tensor) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-6)
    for (name, _), got, want in zip(model.named_parameters(), gradients(model, ours), gradients(model, theirs), strict=True):
        assert (got - want).norm() <= 2e-6 * want.norm(), name
