"""Forward pass and training step of BERT and GPT-2 against Hugging Face and torch's own encoder, also on ragged texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from benchmarks.harness import Products, interleave
from zoo import kernel

JOBS = {
    "bert-base": "bert-base, batch 4 x 128 tokens",
    "bert-base-ragged": "bert-base, 8 texts of 16 to 512 tokens",
    "minilm": "all-minilm-l6-v2, 32 texts of 8 to 128 tokens",
    "gpt2": "gpt2 (124M), batch 2 x 256 tokens, scores of the next ones",
}


def inputs(job: str) -> dict[str, Tensor]:
    """The texts of a job, with a mask."""
    rows, lengths = {
        "bert-base": (4, [128] * 4),
        "bert-base-ragged": (8, torch.linspace(16, 512, 8).long().tolist()),
        "minilm": (32, torch.linspace(8, 128, 32).long().tolist()),
        "gpt2": (2, [256] * 2),
    }[job]
    longest = max(lengths)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def decoders() -> dict[str, nn.Module]:
    """GPT-2 as Hugging Face draws it, and as zoo reads it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa"
    )
    theirs = transformers.GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = zoo.load(folder)
        ours.load_state_dict({key: value.clone() for key, value in ours.state_dict().items()}, assign=True)
    return {"zoo": ours, "transformers": theirs}


def contenders(job: str) -> dict[str, nn.Module]:
    """The same model with the same weights: Hugging Face draws them, zoo reads its folder."""
    import transformers

    if job == "gpt2":
        return decoders()
    transformers.utils.logging.disable_progress_bar()
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536} if job == "minilm" else {}
    torch.manual_seed(0)
    # no dropout: equal work in training, and the same every time
    config = transformers.BertConfig(
        **sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa"
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        change = {"stack.padding": "skip"} if job != "bert-base" else {}
        ours = zoo.load(folder, change)
        ours.load_state_dict({key: value.clone() for key, value in ours.state_dict().items()}, assign=True)
    return {"zoo": ours, "transformers": theirs, "torch encoder": Encoder(theirs)}


SCORES = 10000  # more columns than any width


class Encoder(nn.Module):
    """Hugging Face's embedding in front of `torch.nn.TransformerEncoder` with the same weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.embedding = model.embeddings
        layer = nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0, "gelu",
            config.layer_norm_eps, batch_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=True)
        for mine, theirs in zip(self.encoder.layers, model.encoder.layer):
            attention = getattr(theirs.attention, "self")
            parts = (attention.query, attention.key, attention.value)
            joined: dict[str, nn.Module] = {
                "self_attn.out_proj": theirs.attention.output.dense, "linear1": theirs.intermediate.dense,
                "linear2": theirs.output.dense, "norm1": theirs.attention.output.LayerNorm, "norm2": theirs.output.LayerNorm,
            }  # fmt: skip
            state = {f"{name}.{key}": value for name, part in joined.items() for key, value in part.state_dict().items()}
            for key in ("weight", "bias"):
                state[f"self_attn.in_proj_{key}"] = torch.cat([getattr(part, key) for part in parts])
            mine.load_state_dict(state)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = None if bool(attention_mask.all()) else attention_mask == 0
        # its way around padding refuses autocast; then it computes padding too
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(before and not (torch.is_autocast_enabled("cpu") and mask is not None))
        try:
            return self.encoder(self.embedding(input_ids), src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


def answer(model: nn.Module, texts: Mapping[str, Tensor]) -> Tensor:
    """The vectors of the tokens, however the model returns them; of a model that has no other answer its scores."""
    output = model(**texts)
    scores = getattr(output, "logits", None)
    vectors: Tensor = getattr(output, "last_hidden_state", output) if scores is None else scores
    return vectors


def cost(model: nn.Module, texts: Mapping[str, Tensor]) -> Tensor:
    """What a training step makes smaller: of scores the cross-entropy with the next tokens, otherwise squares."""
    found = answer(model, texts)
    if found.shape[-1] > SCORES:
        return nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), texts["input_ids"][:, 1:].flatten())
    return (found.float() * texts["attention_mask"][..., None]).pow(2).mean()


def work(model: nn.Module, texts: Mapping[str, Tensor], mode: str, cast: bool) -> Callable[[], None]:
    """One forward pass or one training step."""
    context = torch.autocast("cpu", torch.bfloat16, enabled=cast)
    if mode == "forward":

        def forward() -> None:
            with torch.inference_mode(), context:
                answer(model, texts)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with context:
            loss = cost(model, texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(job: str, mode: str, cast: bool, rounds: int) -> dict[str, Any]:
    """The times of all contenders, the pure products' of Hugging Face's way, and ours as a multiple of the faster peer's."""
    models, texts = contenders(job), inputs(job)
    real = texts["attention_mask"].bool()
    with torch.no_grad():
        answers = {key: answer(model.eval(), texts) for key, model in models.items()}
    worst = max(float((value[real] - answers["transformers"][real]).abs().max()) for value in answers.values())
    assert all(each.shape[:2] == real.shape for each in answers.values())
    with Products() as products, torch.autocast("cpu", torch.bfloat16, enabled=cast), kernel.plain():
        if mode == "forward":
            with torch.no_grad():
                answer(models["transformers"], texts)
        else:
            cost(models["transformers"].train(), texts).backward()
    models["transformers"].zero_grad(set_to_none=True)
    jobs = {key: work(model.train(mode == "step"), texts, mode, cast) for key, model in models.items()}
    jobs["products alone"] = products.replay
    timings = interleave(jobs, "zoo", rounds)
    peers = {key: timings[key].ratio for key in models if key != "zoo"}
    return {
        "model": job,
        "mode": mode,
        "dtype": "bfloat16 autocast" if cast else "float32",
        "difference of the answers": worst,
        "milliseconds": {key: round(timing.median * 1e3, 1) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(min(peers.values()), 3),
        "texts a second": round(len(texts["input_ids"]) / timings["zoo"].median, 1),
    }
