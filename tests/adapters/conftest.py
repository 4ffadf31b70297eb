"""Provide tiny transformers and batches for tests of adapters."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Tests do not use the network; Hugging Face's libraries read these at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of libraries that these import
    importlib.import_module("peft")
    import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "init_std": 0.3,  # large enough for uneven attention
    "initializer_range": 0.3,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _opt(**options: Any) -> nn.Module:
    dropout = {"dropout": 0.0, "attention_dropout": 0.0}
    config = transformers.OPTConfig(**{**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, **dropout, **options})
    return transformers.OPTForCausalLM(config)


def _opt_post_norm(**options: Any) -> nn.Module:
    return _opt(do_layer_norm_before=False, **options)


def _bert(**options: Any) -> nn.Module:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**{**SMALL, "intermediate_size": 24, **dropout, **options})
    return transformers.BertForMaskedLM(config)


def _roberta(**options: Any) -> nn.Module:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.RobertaConfig(**{**SMALL, "intermediate_size": 24, **dropout, **options})
    return transformers.RobertaForMaskedLM(config)


def _decoder(family: str, **options: Any) -> nn.Module:
    shape = {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **shape, **options})
    automatic: Any = transformers.AutoModelForCausalLM
    model: nn.Module = automatic.from_config(config)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "opt": _opt,
    "opt-post-norm": _opt_post_norm,
    "bert": _bert,
    "roberta": _roberta,
    "gemma": partial(_decoder, "gemma"),
    "gemma2": partial(_decoder, "gemma2"),
    "gemma3": partial(_decoder, "gemma3_text"),
    "llama": partial(_decoder, "llama"),
    "mistral": partial(_decoder, "mistral"),
    "qwen2": partial(_decoder, "qwen2"),
    "qwen3": partial(_decoder, "qwen3"),
}


@pytest.fixture
def transformer() -> Callable[..., nn.Module]:
    """Return a function that makes a tiny model by its name in MODELS, with random weights from a seed."""

    def make(name: str, seed: int = 0, **options: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MODELS[name](**options)
            # Nontrivial normalisations and biases, so that an error in their place changes the outputs.
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn(parameter.shape)
        return model.eval()

    return make


def randomise_b(adapted: Any, std: float = 0.3, seed: int = 3) -> Any:
    """Set every B to noise, so that every adapter has an effect, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for unit in adapted.units:
            unit.weights[1].normal_(0, std, generator=generator)
    return adapted


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    """Draw four batches of random tokens, which are their own labels."""
    generator = torch.Generator().manual_seed(7)
    tokens = [torch.randint(3, 40, (3, 9), generator=generator) for _ in range(4)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each} for each in tokens]
