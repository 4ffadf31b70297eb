"""Find the modules of transformer layers that adapters attach to, by architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..common.errors import ConfigurationError

__all__ = ["ARCHITECTURES", "Architecture", "TransformerLayer", "find_layers"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Name the parts of a transformer layer.

    Attributes:
        layer: name of the layer's class in transformers.
        projections: path of each projection in the layer.
        attention_norm: path of the normalisation after the sum of attention and skip.
        output_norm: path of the normalisation after the sum of feed-forward and skip; None if the layer normalises
            before attention and feed-forward, and thus ends with this sum.
        pre_norm: name of a flag of the layer that is true if the layer normalises before attention and feed-forward;
            then there is no output norm.
    """

    layer: str
    projections: Mapping[str, str]
    attention_norm: str
    output_norm: str | None = None
    pre_norm: str | None = None


_BERT = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}

_LLAMA = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}


def _like_bert(layer: str) -> Architecture:
    return Architecture(layer, _BERT, attention_norm="attention.output.LayerNorm", output_norm="output.LayerNorm")


def _like_llama(layer: str, attention_norm: str = "post_attention_layernorm") -> Architecture:
    return Architecture(layer, _LLAMA, attention_norm)


ARCHITECTURES: dict[str, Architecture] = {
    "opt": Architecture(
        layer="OPTDecoderLayer",
        projections={
            "q_proj": "self_attn.q_proj",
            "k_proj": "self_attn.k_proj",
            "v_proj": "self_attn.v_proj",
            "o_proj": "self_attn.out_proj",
            "fc1": "fc1",
            "fc2": "fc2",
        },
        attention_norm="final_layer_norm",
        pre_norm="do_layer_norm_before",
    ),
    "bert": _like_bert("BertLayer"),
    "roberta": _like_bert("RobertaLayer"),
    "gemma": _like_llama("GemmaDecoderLayer"),
    # Their post_attention_layernorm comes before the sum.
    "gemma2": _like_llama("Gemma2DecoderLayer", attention_norm="pre_feedforward_layernorm"),
    "gemma3": _like_llama("Gemma3DecoderLayer", attention_norm="pre_feedforward_layernorm"),
    "llama": _like_llama("LlamaDecoderLayer"),
    "mistral": _like_llama("MistralDecoderLayer"),
    "qwen2": _like_llama("Qwen2DecoderLayer"),
    "qwen3": _like_llama("Qwen3DecoderLayer"),
}
"""Supported architectures by name; add an entry to support another one."""

# The published 350m model of OPT normalises after each sum, by the same modules.
_OPT_POST_NORM = ("self_attn_layer_norm", "final_layer_norm")


@dataclass(frozen=True, slots=True)
class TransformerLayer:
    """Hold a transformer layer of a model, and its parts.

    Attributes:
        index: number of the layer, from 0.
        module: the layer.
        projections: full name in the model of each projection's linear layer.
        width: number of features in the skip connections.
        attention_norm: normalisation after the sum of attention and skip.
        output_norm: normalisation after the layer's last sum; None if the layer ends with this sum.
    """

    index: int
    module: nn.Module
    projections: Mapping[str, str]
    width: int
    attention_norm: nn.Module
    output_norm: nn.Module | None


def find_layers(model: nn.Module) -> list[TransformerLayer]:
    """Find the transformer layers of a model, first to last.

    Raises:
        ConfigurationError: the model has no layer of a supported architecture.
    """
    found: list[TransformerLayer] = []
    by_class = {architecture.layer: architecture for architecture in ARCHITECTURES.values()}
    for name, module in model.named_modules():
        architecture = by_class.get(type(module).__name__)
        if architecture is not None:
            found.append(_layer(len(found), name, module, architecture))
    if not found:
        raise ConfigurationError(
            f"{type(model).__name__} has no layers that adapters support; supported are {', '.join(ARCHITECTURES)}"
        )
    return found


def _layer(index: int, name: str, module: nn.Module, architecture: Architecture) -> TransformerLayer:
    attention_norm, output_norm = architecture.attention_norm, architecture.output_norm
    if architecture.pre_norm is not None and not getattr(module, architecture.pre_norm):
        attention_norm, output_norm = _OPT_POST_NORM
    if getattr(module, "chunk_size_feed_forward", 0):
        raise ConfigurationError("adapters need the feed-forward part in one piece; set chunk_size_feed_forward to 0")
    prefix = f"{name}." if name else ""
    query: Any = module.get_submodule(architecture.projections["q_proj"])
    return TransformerLayer(
        index=index,
        module=module,
        projections={key: prefix + path for key, path in architecture.projections.items()},
        width=query.in_features,
        attention_norm=module.get_submodule(attention_norm),
        output_norm=None if output_norm is None else module.get_submodule(output_norm),
    )
