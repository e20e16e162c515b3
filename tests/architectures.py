"""Small configs of our own making for the architectures of mlx-lm, and models with random weights.

`ARCHITECTURES` maps a name to a config and the kinds of cache layers that it must have. The name is
the module of mlx-lm, with a `+variant` where one module has several kinds. Configs are tiny: width
64, 2 to 6 blocks, window 16, a vocabulary of 160. Weights are random with a key made from the name,
large enough that a changed token moves the logits visibly.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

Config = dict[str, Any]

VOCAB_SIZE = 160
WINDOW = 16
SLIDING, FULL = "sliding_attention", "full_attention"
THREE_TO_ONE = [SLIDING, SLIDING, SLIDING, FULL]

# Every module takes what it knows from here, as mlx-lm ignores unknown keys of a config.
COMMON: Config = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
}
EXPERTS: Config = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
LATENT: Config = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
LATENT_EXPERTS = {**LATENT, **EXPERTS, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
SCALINGS: Config = {
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.8,
    "logits_scaling": 2.0,
}
LINEAR: Config = {  # gated delta layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
MAMBA2: Config = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
}
GEMMA4: Config = {
    "num_hidden_layers": 6,
    "sliding_window": 8,
    "sliding_window_pattern": 3,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "global_head_dim": 32,
}


def _text(model_type: str, **changes: Any) -> Config:
    """Return the config of a model that nests its text part."""
    text = {**COMMON, "model_type": model_type, **changes}
    return {"text_config": text, "vocab_size": VOCAB_SIZE}


DENSE: dict[str, Config] = {
    "afm7": {
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "apertus": {"post_norm": False, "qk_norm": True},
    "bailing_moe": {**EXPERTS, "use_qk_norm": False},
    "cohere": {"use_qk_norm": True},
    "dbrx": {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek": EXPERTS,
    "deepseek_v2": {
        **LATENT_EXPERTS,
        "topk_method": "greedy",
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 128,
        },
    },
    "deepseek_v3": LATENT_EXPERTS,
    "dots1": EXPERTS,
    "ernie4_5": {},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
    },
    "exaone": {"num_layers": 2},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "query_pre_attn_scalar": 16.0},
    "glm": {},
    "glm4": {},
    "glm4_moe": EXPERTS,
    "glm4_moe_lite": LATENT_EXPERTS,
    "gpt2": {"n_ctx": 512, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "gpt_bigcode": {
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_inner": 96,
        "n_positions": 512,
        "num_key_value_heads": 1,
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25, "num_key_value_heads": 4},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512, "rotary_dim": 8},
    "granite": SCALINGS,
    "granitemoe": {**SCALINGS, **EXPERTS},
    "helium": {},
    "hunyuan": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "moe_topk": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 2.0},
    },
    "hunyuan_v1_dense": {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 2.0}},
    "internlm2": {"bias": False},
    "internlm3": {},
    "kimi_k25": _text("deepseek_v3", **LATENT_EXPERTS),
    "kimi_vl": _text("deepseek_v3", **LATENT_EXPERTS),
    "Klear": EXPERTS,
    "lille-130m": {"block_size": 512, "n_embd": 64, "n_head": 4, "n_kv_heads": 2, "n_layer": 2},
    "llama": {},
    "llama4_text": {
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 96,
        "no_rope_layers": [1, 1, 1, 0],
    },
    "mimo": {},
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 2},
    "minicpm3": {
        **LATENT,
        "dim_model_base": 32,
        "scale_depth": 1.4,
        "scale_emb": 2,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [1.0] * 4,
            "original_max_position_embeddings": 512,
        },
    },
    "minimax": {**EXPERTS, "rotary_dim": 8},
    "mistral3": _text("llama"),
    "mistral4": {
        **LATENT_EXPERTS,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mixtral": EXPERTS,
    "nanbeige": {"num_loops": 2},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 1}, "ffn": {"no_op": True}},
        ],
    },
    "olmo2": {},
    "olmoe": EXPERTS,
    "openelm": {
        "num_transformer_layers": 2,
        "model_dim": 64,
        "ffn_dim_divisor": 16,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.0, 1.5],
    },
    "phi": {},
    "phi3": {},
    "phimoe": {
        **EXPERTS,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8,
            "short_mscale": 1.0,
            "long_mscale": 1.0,
            "original_max_position_embeddings": 512,
        },
    },
    "phixtral": {
        "num_vocab": VOCAB_SIZE,
        "model_dim": 64,
        "num_heads": 4,
        "num_layers": 2,
        "rotary_dim": 8,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    },
    "pixtral": _text("llama"),
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": 16},
    "qwen2": {},
    "qwen2_moe": EXPERTS,
    "qwen2_vl": _text("qwen2"),
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "qwen3_vl": _text("qwen3"),
    "qwen3_vl_moe": _text("qwen3_moe", **EXPERTS),
    "seed_oss": {},
    "smollm3": {"num_hidden_layers": 4},
    "solar_open": EXPERTS,
    "stablelm": {"use_qkv_bias": True, "num_key_value_heads": 4},
    "stablelm+parallel": {
        "use_qkv_bias": False,
        "use_parallel_residual": True,
        "qk_layernorm": True,
    },
    "starcoder2": {},
    "talkie": {},
    "telechat3": {},
    "youtu_llm": LATENT,
    "deepseek_v32": {
        **LATENT_EXPERTS,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_topk": 24,
    },
    "glm_moe_dsa": {
        **LATENT_EXPERTS,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_topk": 24,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "longcat_flash": {
        **LATENT_EXPERTS,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "minimax_m3_vl": _text(
        "minimax_m3_vl",
        **{**EXPERTS, "moe_layer_freq": [0, 1, 1]},
        num_hidden_layers=3,
        dense_intermediate_size=96,
        layer_types=[FULL, "sparse_attention", "sparse_attention"],
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=8,
        index_topk_blocks=2,
    ),
}

WINDOWED: dict[str, Config] = {
    "afmoe": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "num_dense_layers": 1,
        "sliding_window": WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
    },
    "cohere2": {"num_hidden_layers": 4, "sliding_window": WINDOW, "sliding_window_pattern": 4},
    "exaone4": {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": "LLLG"},
    "exaone_moe": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": THREE_TO_ONE,
        "is_moe_layer": [False, True, True, True],
    },
    "gemma3": _text(
        "gemma3_text",
        num_hidden_layers=4,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        query_pre_attn_scalar=16,
    ),
    "gemma3_text": {
        "num_hidden_layers": 6,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 16,
    },
    "gemma3n": _text(
        "gemma3n_text",
        num_hidden_layers=4,
        intermediate_size=[96] * 4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=16,
        sliding_window=8,
        rope_local_base_freq=10000.0,
        final_logit_softcapping=30.0,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        altup_num_inputs=2,
        altup_coef_clip=120.0,
        altup_correct_scale=True,
        altup_active_idx=0,
        laurel_rank=8,
    ),
    "gemma4": _text("gemma4_text", **GEMMA4),
    "gemma4_text": GEMMA4,
    "gpt_oss": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 64,
        },
    },
    "iquestloopcoder": {"loop_num": 2, "loop_window_size": WINDOW},
    "laguna": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "sliding_window": 4,
        "layer_types": [FULL, SLIDING, SLIDING, SLIDING],
    },
    "llama+sliding": {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": THREE_TO_ONE,
    },
    "mellum": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": THREE_TO_ONE,
        "rope_parameters": {
            SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
            FULL: {"rope_theta": 100000.0, "rope_type": "default"},
        },
    },
    "mimo_v2_flash": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 1,
        "v_head_dim": 8,
        "swa_head_dim": 16,
        "swa_v_head_dim": 8,
    },
    "ministral3": {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": THREE_TO_ONE,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "muse_glimmer": {"num_hidden_layers": 4, "sliding_window": WINDOW},
    "muse_spark": _text(
        "muse_spark_text",
        **{**EXPERTS, "num_shared_experts": 0},
        num_hidden_layers=4,
        post_norm_eps=1e-5,
        rope_parameters={"rope_theta": 10000.0},
        layer_rope_theta=[10000.0, 10000.0, 10000.0, 0],
        layer_types=THREE_TO_ONE,
        sliding_window=WINDOW,
        final_logit_softcapping=20.0,
        output_multiplier=1.0,
        moe_hidden_size=64,
    ),
    "olmo3": {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": THREE_TO_ONE},
    "plamo3": {"num_hidden_layers": 4, "window_size": WINDOW, "sliding_window_pattern": 2},
    "spark2_5": {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "rope_parameters": {
            SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
            FULL: {"rope_theta": 100000.0, "rope_type": "default"},
        },
    },
    "step3p5": {
        "num_hidden_layers": 4,
        "num_attention_groups": 2,
        "sliding_window": WINDOW,
        "layer_types": [FULL, SLIDING, SLIDING, FULL],
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
        "moe_layers_enum": "1,2,3",
    },
}

HYBRID: dict[str, Config] = {
    "bailing_hybrid": {
        **LATENT_EXPERTS,
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "group_norm_size": 2,
    },
    "bailing_moe_linear": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "group_norm_size": 2,
    },
    "bailing_moe_v3": {
        **LATENT_EXPERTS,
        "model_type": "bailing_hybrid",
        "architectures": ["BailingMoeV3ForCausalLM"],
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "moe_shared_expert_intermediate_size": 32,
    },
    "falcon_h1": {**MAMBA2, "num_hidden_layers": 2},
    "granitemoehybrid": {
        **SCALINGS,
        **EXPERTS,
        **MAMBA2,
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
    "jamba": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "kimi_k3": _text(
        "kimi_linear",
        **LATENT_EXPERTS,
        num_hidden_layers=4,
        linear_attn_config={
            "num_heads": 4,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
            "kda_layers": [1, 3],
            "full_attn_layers": [2, 4],
        },
        activation_situ_beta=1.0,
        activation_situ_linear_beta=1.0,
        attn_res_block_size=2,
    ),
    "kimi_linear": {
        **LATENT_EXPERTS,
        "num_hidden_layers": 4,
        "model_max_length": 512,
        "linear_attn_config": {
            "num_heads": 4,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
            "kda_layers": [1],
            "full_attn_layers": [2, 3, 4],
        },
    },
    "lfm2": {
        "num_hidden_layers": 4,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", FULL, FULL, FULL],
    },
    "lfm2-vl": _text(
        "lfm2",
        num_hidden_layers=4,
        conv_bias=False,
        conv_L_cache=3,
        block_dim=64,
        block_multiple_of=16,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", FULL, "conv", FULL],
    ),
    "lfm2_moe": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "conv_bias": False,
        "conv_L_cache": 3,
        "layer_types": ["conv", FULL, FULL, FULL],
    },
    "longcat_flash_ngram": {
        **LATENT_EXPERTS,
        "zero_expert_num": 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "ngram_vocab_size_ratio": 4,
        "emb_neighbor_num": 3,
        "emb_split_num": 2,
    },
    "nemotron_h": {
        "num_hidden_layers": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_conv_bias": True,
        "hybrid_override_pattern": ["M", "*", "-", "M", "*"],
    },
    "olmo_hybrid": {
        **LINEAR,
        "num_hidden_layers": 4,
        "linear_allow_neg_eigval": True,
        "layer_types": ["linear_attention"] * 3 + [FULL],
    },
    "plamo2": {
        "num_hidden_layers": 4,
        "hidden_size_per_head": 16,
        "mamba_d_state": 16,
        "mamba_num_heads": 4,
        "mamba_step": 2,
        "mamba_chunk_size": 16,
        "attention_window_size": WINDOW,
    },
    "qwen3_5": _text("qwen3_5_text", **LINEAR, num_hidden_layers=4),
    "qwen3_5_moe": _text("qwen3_5_moe_text", **LINEAR, **EXPERTS, num_hidden_layers=4),
    "qwen3_next": {**LINEAR, **EXPERTS, "num_hidden_layers": 4},
}

RECURRENT: dict[str, Config] = {
    "mamba": {
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "state_size": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "mamba2": {
        "num_hidden_layers": 4,
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 4,
    },
    "rwkv7": {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
}

OTHERS: dict[str, tuple[set[str], Config]] = {
    "gear": (
        {"recurrent", "window", "full"},
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["conv_mixer", SLIDING, "conv_mixer", FULL],
        },
    ),
    "recurrent_gemma": (
        {"recurrent", "window"},
        {
            "num_hidden_layers": 4,
            "conv1d_width": 4,
            "logits_soft_cap": 30.0,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "recurrent", "attention", "recurrent"],
            "num_key_value_heads": 1,
        },
    ),
    "baichuan_m1": (
        {"recurrent", "window", "full"},
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "sliding_window_layers": [0, 2],
            "conv_window": 2,
        },
    ),
    "llama4": (
        {"chunked", "full"},
        _text(
            "llama4_text",
            **{**EXPERTS, "num_experts_per_tok": 1},
            num_hidden_layers=4,
            attention_chunk_size=8,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=96,
        ),
    ),
    "deepseek_v41": (
        {"opaque"},
        # It rounds its cache to 8 and 4 bits where widths are multiples of 32; these are not, as
        # rounding turns the last digit of a matrix product into a visible step.
        {
            **LATENT_EXPERTS,
            "num_hidden_layers": 4,
            "head_dim": 24,
            "o_groups": 2,
            "o_lora_rank": 16,
            "scoring_func": "sqrtsoftplus",
            "sliding_window": WINDOW,
            "compress_ratios": [0, 1, 4, 4],
            "kv_source_layer_ids": [-1, 1, 2, 2],
            "index_source_layer_ids": [-1, 1, 2, 2],
            "index_n_heads": 2,
            "index_head_dim": 24,
            "index_topk": 8,
            "hc_mult": 2,
            "rms_norm_eps": 1e-6,
        },
    ),
}

# Modules without a config here, each with the reason.
LEFT_OUT = {
    "bitnet": "its matrix product exists as a Metal kernel only",
    "prism_hadamard_qwen35": "takes 2-bit packed weights only; random plain ones do not fit it",
    "olmo": "its module ends the process unless the package ai2-olmo is installed",
    "phi3small": "refused by zoo_loading.py: mlx-lm's prefill for it sees later tokens",
}
# Has a config, but its kernels exist for Metal only.
NEEDS_METAL = frozenset({"muse_spark"})


@dataclass(frozen=True)
class Architecture:
    """A config and the kinds of cache layers that it leads to."""

    config: Config
    kinds: frozenset[str]


def _tabulate() -> dict[str, Architecture]:
    groups: list[tuple[set[str], dict[str, Config]]] = [
        ({"full"}, DENSE),
        ({"window", "full"}, WINDOWED),
        ({"recurrent", "full"}, HYBRID),
        ({"recurrent"}, RECURRENT),
        *((kinds, {name: config}) for name, (kinds, config) in OTHERS.items()),
    ]
    table = {}
    for kinds, configs in groups:
        for name, config in configs.items():
            if name in NEEDS_METAL and not mx.metal.is_available():
                continue
            plain = {} if "text_config" in config else COMMON
            model_type = name.partition("+")[0]
            table[name] = Architecture(
                {**plain, "model_type": model_type, **config}, frozenset(kinds)
            )
    return table


ARCHITECTURES = _tabulate()


def make_config(name: str) -> Config:
    """Return a fresh copy of the config of one architecture."""
    return copy.deepcopy(ARCHITECTURES[name].config)


def make_model(name: str, **changes: Any) -> Any:
    """Build mlx-lm's model with random float32 weights that depend on the name only.

    Args:
        name: Key of `ARCHITECTURES`.
        changes: Values that replace those of the config.
    """
    from mlx_lm.utils import _get_classes

    config = {**make_config(name), **changes}
    model_class, args_class = _get_classes(config)
    mx.random.seed(0)  # weights are drawn again below; this covers what a constructor draws itself
    model = model_class(args_class.from_dict(config))
    model.set_dtype(mx.float32)
    model.eval()
    randomize(model, name)
    return model


def randomize(model: Any, name: str) -> None:
    """Give a model random weights of a size that keeps the logits sensitive to the tokens."""
    key = mx.random.key(zlib.crc32(name.encode()))
    fresh = []
    for path, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        if not mx.issubdtype(array.dtype, mx.floating):
            continue
        if array.ndim <= 1:
            fresh.append((path, array + 0.1 * mx.random.normal(array.shape, key=own)))
            continue
        fan_in = math.prod(array.shape[1:]) if "conv" in path else array.shape[-1]
        scale = 1.0 if "embed" in path else 1.5 / math.sqrt(fan_in)
        fresh.append((path, scale * mx.random.normal(array.shape, key=own)))
    model.update(tree_unflatten(fresh))
    mx.eval(model.parameters())


def write_folder(name: str, folder: Path, model: Any = None, config: Config | None = None) -> Path:
    """Write config.json and model.safetensors of an architecture and return the folder.

    Args:
        name: Key of `ARCHITECTURES`.
        folder: Made where it is missing.
        model: Whose weights to write; None for those of `make_model`.
        config: What to write as config.json; None for `make_config`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or make_config(name)))
    model = make_model(name) if model is None else model
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
