"""Train the demo model and write its files: `python -m benchmarks.demo_data.train`.

Rows are told as they are needed and none is used twice. The same settings on the same machine give the same weights.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks.demo_data.rows import TRAIN, entropy, surprisal, tell_rows
from benchmarks.demo_data.vocabulary import PIECE, SPECIAL_TOKENS, collect_vocabulary
from param_features.demo.loading import build_model, load_tokenizer
from param_features.demo.vocabulary import (
    BOS,
    CONFIG_FILE,
    MODEL_DIR,
    TOKENIZER_FILE,
    UNKNOWN,
    WEIGHTS_FILE,
    read_vocabulary,
)

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

N_CTX = 64
N_HELD_OUT = 2048


@dataclass(frozen=True)
class Training:
    """How the model is trained.

    Attributes:
        n_steps: Optimiser steps.
        batch: Rows per step.
        lr: Highest learning rate, reached after `n_warmup` steps; it then falls to 0 along a cosine.
        n_warmup: Steps of linear warm-up.
        weight_decay: AdamW's, on matrices only.
        seed: Of the initial weights and of the training rows.
    """

    n_steps: int = 3600
    batch: int = 64
    lr: float = 3e-3
    n_warmup: int = 150
    weight_decay: float = 0.02
    seed: int = 0


def main() -> None:
    """Train, measure and write model.safetensors, config.json and tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder for the three files")
    parser.add_argument("--n-steps", type=int, default=Training.n_steps, help="optimiser steps")
    options = parser.parse_args()
    out, settings = options.out, Training(n_steps=options.n_steps)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = collect_vocabulary()
    write_tokenizer(vocabulary, out / TOKENIZER_FILE)
    architecture = describe_architecture(len(vocabulary))
    torch.set_num_threads(1)  # the order of sums, and so the weights, would change with the number of threads
    torch.manual_seed(settings.seed)
    model = build_model(architecture, load_tokenizer(out / TOKENIZER_FILE), init_weights=True)
    start = time.perf_counter()
    train(model, vocabulary, settings)
    seconds = time.perf_counter() - start
    write_weights(model, out / WEIGHTS_FILE)
    record = {"architecture": architecture, "training": {**asdict(settings), "seconds": round(seconds)}}
    record |= {"held_out": evaluate(model.eval(), vocabulary), "vocabulary": list(vocabulary)}
    (out / CONFIG_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    tqdm.write(json.dumps(record["held_out"], indent=1))


def describe_architecture(d_vocab: int) -> dict:
    """Keyword arguments of `HookedTransformerConfig` for the demo model."""
    return {
        "model_name": "param_features.demo",
        "n_layers": 4,
        "d_model": 64,
        "n_heads": 4,
        "d_head": 16,
        "d_mlp": 256,
        "n_ctx": N_CTX,
        "d_vocab": d_vocab,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "default_prepend_bos": True,
    }


def write_tokenizer(vocabulary: dict[str, int], path: Path) -> None:
    """Write a word-level tokenizer.json that splits text by `PIECE` and prepends `<bos>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = (BOS, vocabulary[BOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path))
    read_vocabulary.cache_clear()


def train(model: "HookedTransformer", vocabulary: dict[str, int], settings: Training) -> None:
    """Train in place on rows that are told once each.

    Args:
        model: The model to train.
        vocabulary: Token ids.
        settings: How to train.
    """
    optimizer = make_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, settings))
    model.train()
    for step in (progress := tqdm(range(settings.n_steps), mininterval=5)):
        rows = training_rows(step, vocabulary, settings)
        logits = model(rows[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def make_optimizer(model: "HookedTransformer", settings: Training) -> torch.optim.AdamW:
    """AdamW with weight decay on weight matrices, none on biases, LayerNorms and embeddings."""
    decayed = [p for name, p in model.named_parameters() if ".W_" in name and "embed" not in name]
    decayed_ids = {id(p) for p in decayed}
    free = [p for p in model.parameters() if id(p) not in decayed_ids]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))


def lr_factor(step: int, settings: Training) -> float:
    """Learning rate at a step as a part of the highest, in (0, 1]: linear warm-up, then half a cosine."""
    if step < settings.n_warmup:
        return (step + 1) / settings.n_warmup
    done = (step - settings.n_warmup) / max(1, settings.n_steps - settings.n_warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def training_rows(step: int, vocabulary: dict[str, int], settings: Training) -> Int[Tensor, "batch pos"]:
    """The rows of one step, one token longer than the model reads, so that its last position has a target."""
    rows = tell_rows(settings.batch, N_CTX + 1, seed=settings.seed, split=TRAIN, first=step * settings.batch)
    return torch.tensor([[vocabulary[token] for token in row.tokens] for row in rows])


@torch.no_grad()
def evaluate(model: "HookedTransformer", vocabulary: dict[str, int], *, n: int = N_HELD_OUT, seed: int = 0) -> dict:
    """Compare the model with the grammar on held-out rows; all figures are nats per token.

    Args:
        model: The trained model, in eval mode.
        vocabulary: Token ids.
        n: Number of rows of `tokens(n, seed=seed)`.
        seed: Their seed.

    Returns:
        The model's cross-entropy, the surprisal of the same tokens under the grammar, and the grammar's entropy.
    """
    rows = torch.tensor([[vocabulary[token] for token in row.tokens] for row in tell_rows(n, N_CTX, seed=seed)])
    losses = torch.cat([next_token_losses(model, part) for part in rows.split(256)])
    return {
        "n": n,
        "n_ctx": N_CTX,
        "seed": seed,
        "cross_entropy": round(losses.double().mean().item(), 6),
        "surprisal": round(surprisal(n, n_ctx=N_CTX, seed=seed)[:, :-1].double().mean().item(), 6),
        "entropy": round(entropy(n, n_ctx=N_CTX, seed=seed)[:, :-1].double().mean().item(), 6),
    }


def next_token_losses(model: "HookedTransformer", rows: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch next_pos"]:
    """-log p of each token after the first, in nats."""
    return cross_entropy(model(rows)[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")


def write_weights(model: "HookedTransformer", path: Path) -> None:
    """Write every parameter under its name; buffers are rebuilt from the configuration."""
    from safetensors.torch import save_file

    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, path)


if __name__ == "__main__":
    main()
