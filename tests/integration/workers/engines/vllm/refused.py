"""Options that cannot work with the bundled model on a CPU, and what the error is to say."""

from __future__ import annotations

from typing import Any

from tests.support.real_engine import CONTEXT

NGRAM = {"method": "ngram", "num_speculative_tokens": 4}
SPECULATION = "options.speculative_config"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"max_num_seqz": 8}, r"m\.options\.max_num_seqz: vLLM \S+ has no max_num_seqz; .*max_num_seqs"),
    "name of the command line": ({"max-num-seqs": 8}, r"m\.options\.max-num-seqs: .*did you mean 'max_num_seqs'"),
    "option of another field": ({"served_model_name": "x"}, r"m\.options\.served_model_name: .* set name instead"),
    "unknown method": (
        {"quantization": "bitsandbytes"},
        r"m\.options\.quantization: this build of vLLM .* has no method",
    ),
    "misspelt method": ({"quantization": "compressed_tensors"}, r"did you mean 'compressed-tensors'\?"),
    "not a quantized checkpoint": (
        {"quantization": "awq", "dtype": "bfloat16"},
        r"m\.options\.quantization: the model's files are not quantized with awq; name a model whose files are, or"
        r" use fp8_per_channel, which quantizes while loading",
    ),
    "another dtype": (
        {"quantization": "fp8_per_block"},
        r"m\.options\.quantization: fp8_per_block does not run in float32; set options\.dtype to bfloat16 or float16",
    ),
    "needs a GPU": (
        {"quantization": "fp8_per_tensor", "dtype": "bfloat16"},
        r"m\.options\.quantization: fp8_per_tensor does not run on a CPU \(.+\); these do: fp8_per_channel, .*GPTQ",
    ),
    "quantizes nothing": (
        {"quantization": "int8_per_channel_weight_only", "dtype": "bfloat16"},
        r"m\.options\.quantization: int8_per_channel_weight_only quantizes only the experts .* nothing would be",
    ),
    "quantizes nothing, by another class": (
        {"quantization": "experts_int8", "dtype": "bfloat16"},
        r"experts_int8 quantizes only the experts .*; use fp8_per_channel, or omit the option",
    ),
    "quantization by layer without layers": (
        {"quantization": "online", "dtype": "bfloat16"},
        r"m\.options\.quantization: online needs options\.quantization_config",
    ),
    "unknown attention backend": (
        {"attention_backend": "FLASH_ATN"},
        r"no attention backend 'FLASH_ATN'; .*FLASH_AT",
    ),
    "attention backend of a GPU": (
        {"attention_backend": "FLASHINFER"},
        r"m\.options\.attention_backend: FLASHINFER does not run on cpu; use CPU_ATTN, or omit it",
    ),
    "too few devices": (
        {"tensor_parallel_size": 64},
        r"m\.options\.tensor_parallel_size: needs 64 NUMA nodes that it may use, and this machine has \d+; ",
    ),
    "context over the model's": (
        {"max_model_len": 100_000, "kv_cache_memory_bytes": 1 << 33},
        r"m\.options\.max_model_len: vLLM refuses it: .*100000.*8192",
    ),
    "cache below the context": (
        {"max_model_len": 8192, "kv_cache_memory_bytes": 1 << 26},
        r"m\.options\.kv_cache_memory_bytes: the KV cache holds \d+ tokens, fewer than one request of max_model_len"
        r" \(8192\); set it to at least \d+, or max_model_len to at most \d+",
    ),
    "option that the platform changes": (
        {"async_scheduling": True},
        r"m\.options\.async_scheduling: vLLM uses False here instead of True; omit it",
    ),
    "budget below the context without chunks": (
        {"enable_chunked_prefill": False, "max_num_batched_tokens": CONTEXT // 2, "max_num_seqs": 4},
        r"m\.options\.max_num_batched_tokens: vLLM refuses it: ",
    ),
    "unknown dtype": ({"dtype": "float31"}, r"m\.options\.dtype: vLLM refuses it: .*'bfloat16'"),
    "unknown field of speculation": (
        {"speculative_config": {**NGRAM, "num_speculative_token": 4}},
        rf"m\.{SPECULATION}\.num_speculative_token: .* did you mean 'num_speculative_tokens'",
    ),
    "unknown method of speculation": (
        {"speculative_config": {**NGRAM, "method": "n-gram"}},
        rf"m\.{SPECULATION}\.method: vLLM \S+ has no method 'n-gram'; did you mean 'ngram'\?",
    ),
    "speculation without a method": ({"speculative_config": {"num_speculative_tokens": 4}}, r"needs a method"),
    "speculation on a GPU": (
        {"speculative_config": {**NGRAM, "method": "ngram_gpu"}},
        rf"m\.{SPECULATION}\.method: ngram_gpu needs a GPU; use ngram",
    ),
    "no draft model": ({"speculative_config": {"method": "eagle", "num_speculative_tokens": 2}}, r"model: is required"),
    "missing draft model": (
        {"speculative_config": {"model": "/models/none", "num_speculative_tokens": 2}},
        rf"m\.{SPECULATION}\.model: there is no folder /models/none",
    ),
    "home of a draft model": ({"speculative_config": {"model": "~/x", "num_speculative_tokens": 2}}, "expand ~"),
    "overlapping schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 4, 4], [4, 8, 0]]}},
        rf"m\.{SPECULATION}\.num_speculative_tokens_per_batch_size: .*non-overlapping",
    ),
    "schedule as text": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": "1-4:4"}},
        r"num_speculative_tokens_per_batch_size: is no list, but '1-4:4'; it is a list of \[first, last, tokens\]",
    ),
    "entry of a schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, "8", 0]]}},
        r"has the entry \[3, '8', 0\], which is not three integers",
    ),
    "short entry of a schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 8]]}},
        r"has the entry \[1, 8\], which is not three integers",
    ),
    "empty schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": []}},
        r"num_speculative_tokens_per_batch_size: .*must not be empty",
    ),
    "schedule without its most tokens": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens_per_batch_size": [[1, 8, 2]]}},
        rf"m\.{SPECULATION}\.num_speculative_tokens: is required",
    ),
    "method of speculation that is no name": (
        {"speculative_config": {**NGRAM, "method": ["ngram"]}},
        rf"m\.{SPECULATION}\.method: must be a name, not \['ngram'\]; it has .*ngram",
    ),
    "draft model that is no name": (
        {"speculative_config": {"model": 5, "num_speculative_tokens": 2}},
        rf"m\.{SPECULATION}\.model: must be a folder or a hub id, not 5",
    ),
    "negative tokens of speculation": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens": -1}},
        rf"m\.{SPECULATION}: vLLM refuses it: num_speculative_tokens: Input should be greater than 0",
    ),
    "field with another name in vLLM's class": (
        {"kv_cache_dtype": "fp9"},
        r"m\.options\.kv_cache_dtype: vLLM refuses it: .*'fp8'",
    ),
    "field of a mapping": (
        {"attention_config": {"flash_attn_versoin": 3}},
        r"m\.options\.attention_config: vLLM refuses it: .*flash_attn_versoin",
    ),
    "field of the settings of structures": (
        {"structured_outputs_config": {"backnd": "guidance"}},
        r"m\.options\.structured_outputs_config: vLLM refuses it: .*backnd",
    ),
    "another order of jobs": (
        {"scheduling_policy": "fcfs"},
        r"m\.options\.scheduling_policy: must not be 'fcfs', because jobs have priorities; omit it",
    ),
    "model that generates no text": (
        {"runner": "pooling"},
        r"m\.options\.runner: must not be 'pooling', because a worker generates text; omit it",
    ),
    "unknown loader": (
        {"load_format": "safetensor"},
        r"m\.options\.load_format: 'safetensor' cannot be used: .*not supported",
    ),
    "missing tokenizer": (
        {"tokenizer": "/models/none"},
        r"m\.options\.tokenizer: there is no folder /models/none; name a folder, a hub id, or omit it",
    ),
    "unknown executor": (
        {"distributed_executor_backend": "no.such.Executor"},
        r"m\.options\.distributed_executor_backend: 'no.such.Executor' is not the import path of a class or one of mp,",
    ),
    "executor without its package": (
        {"distributed_executor_backend": "ray"},
        r"m\.options\.distributed_executor_backend: ray needs the Python package ray, which is not installed",
    ),
    "unknown class": (
        {"scheduler_cls": "vllm.NoScheduler"},
        r"m\.options\.scheduler_cls: 'vllm.NoScheduler' is not the import path of a class: ",
    ),
    "option in words": ({"enable_sleep_mode": True}, r"m\.options\.enable_sleep_mode: vLLM refuses it: Sleep mode is"),
    "type that vLLM does not check": (
        {"compilation_config": "fast"},
        r"m\.options\.compilation_config: vLLM refuses it: .*dictionary",
    ),
    "more drafts than tokens": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens": CONTEXT}},
        rf"m\.{SPECULATION}\.num_speculative_tokens: is {CONTEXT}, and a request has at most {CONTEXT} tokens",
    ),
    "cache over the machine's memory": (
        {"kv_cache_memory_bytes": 1 << 50},
        r"m\.options\.kv_cache_memory_bytes: needs \d+ GB, and the device has \d+ GB; set it to less than \d+",
    ),
    "schedule over the limit": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 8, 6]]}},
        r"has 6 tokens, more than num_speculative_tokens \(4\)",
    ),
    # Options with which vLLM fails only when the engine's process starts, or not at all.
    "replicas on one node": (
        {"data_parallel_size": 64},
        r"m\.options\.data_parallel_size: needs 64 NUMA nodes that it may use, and this machine has \d+; .*start more"
        r" workers instead",
    ),
    "no engine on this machine": (
        {"data_parallel_size_local": 0},
        r"m\.options\.data_parallel_size_local: must be at least 1: a worker runs an engine itself",
    ),
    "block size": (
        {"block_size": 7},
        r"m\.options\.block_size: is 7, and CPU_ATTN needs a multiple of 32; set it to one, or omit it",
    ),
    "kind of KV cache that the backend does not have": (
        {"kv_cache_dtype": "turboquant_k8v4"},
        r"m\.options\.kv_cache_dtype: CPU_ATTN has no KV cache of the kind turboquant_k8v4; it has auto, .*fp8",
    ),
    "attention backend that nothing registers": (
        {"attention_backend": "CUSTOM"},
        r"m\.options\.attention_backend: CUSTOM cannot be used here: .*registered.*; omit it",
    ),
    "unknown logits processor": (
        {"logits_processors": ["no.such:Processor"]},
        r"m\.options\.logits_processors: 'no\.such:Processor' is not the import path of a class: No module named 'no'",
    ),
    "logits processor in another form": (
        {"logits_processors": ["json.JSONDecoder"]},
        r"m\.options\.logits_processors: 'json\.JSONDecoder' is not .*: write module:Class",
    ),
    "logits processor of another kind": (
        {"logits_processors": ["json:JSONDecoder"]},
        r"m\.options\.logits_processors: 'json:JSONDecoder' is not .*: it does not extend .*LogitsProcessor",
    ),
    "logits processor with speculation": (
        {"logits_processors": ["vllm.v1.sample.logits_processor:MinPLogitsProcessor"], "speculative_config": NGRAM},
        r"m\.options\.logits_processors: vLLM does not run them together with speculative_config",
    ),
    "scheduler that is a function": (
        {"scheduler_cls": "json.dumps"},
        r"m\.options\.scheduler_cls: 'json\.dumps' is not the import path of a class: it is a function",
    ),
    "worker of another kind": (
        {"worker_cls": "json.JSONDecoder"},
        r"m\.options\.worker_cls: .* or one of auto: it does not extend .*WorkerBase",
    ),
    "extension that is a function": (
        {"worker_extension_cls": "json.dumps"},
        r"m\.options\.worker_extension_cls: 'json\.dumps' is not the import path of a class: it is a function",
    ),
    "class of a model": (
        {"model_class_overrides": {"LlamaForCausalLM": "no.such:Model"}},
        r"m\.options\.model_class_overrides: 'no\.such:Model' is not the import path of a class",
    ),
    "class that drafts": (
        {"speculative_config": {"method": "custom_class", "model": "no.Drafter", "num_speculative_tokens": 2}},
        rf"m\.{SPECULATION}\.model: 'no\.Drafter' is not the import path of a class: No module named 'no'",
    ),
    "method that drafts nothing": (
        {"speculative_config": {"method": "extract_hidden_states", "num_speculative_tokens": 1}},
        rf"m\.{SPECULATION}\.method: extract_hidden_states drafts nothing",
    ),
    "short form of speculation": (
        {"spec_method": "ngram", "spec_tokens": 4},
        r"m\.options\.spec_method: is not an engine option here; set options\.speculative_config\.method instead",
    ),
    "method without its package": (
        {"speculative_config": {"method": "suffix", "num_speculative_tokens": 4}},
        rf"m\.{SPECULATION}\.method: suffix needs the Python package arctic_inference, which is not installed",
    ),
    "loader without its package": (
        {"load_format": "runai_streamer"},
        r"m\.options\.load_format: runai_streamer needs the Python package runai_model_streamer, which is not",
    ),
    "connector without its package": (
        {"kv_transfer_config": {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}},
        r"m\.options\.kv_transfer_config\.kv_connector: LMCacheConnectorV1 needs the Python package lmcache",
    ),
    "files of another format": (
        {"load_format": "npcache"},
        r"m\.options\.load_format: 'npcache' cannot be used: Cannot find any model weights",
    ),
    "missing configuration": (
        {"hf_config_path": "/models/none"},
        r"m\.options\.hf_config_path: there is no folder /models/none; name a folder, a hub id, or omit it",
    ),
    "missing defaults of sampling": (
        {"generation_config": "/models/none"},
        r"m\.options\.generation_config: there is no folder /models/none; name .*, auto, vllm, or omit it",
    ),
    "missing plugin": (
        {"reasoning_parser_plugin": "/none.py"},
        r"m\.options\.reasoning_parser_plugin: there is no file /none\.py",
    ),
    "missing folder of media": (
        {"allowed_local_media_path": "/none"},
        r"m\.options\.allowed_local_media_path: there is no folder /none",
    ),
    "revision of a folder": (
        {"revision": "main"},
        r"m\.options\.revision: has no effect, because the model is the folder .*SmolLM2-135M-Instruct; omit it",
    ),
    "revision of the tokenizer in a folder": (
        {"tokenizer_revision": "main"},
        r"m\.options\.tokenizer_revision: has no effect, because the tokenizer is the folder ",
    ),
    "word that vLLM ignores": (
        {"linear_backend": "marlim"},
        r"m\.options\.linear_backend: vLLM \S+ has no linear_backend 'marlim'; did you mean 'marlin'\?",
    ),
    "implementation that vLLM ignores": (
        {"model_impl": "transformer"},
        r"m\.options\.model_impl: vLLM \S+ has no model_impl 'transformer'; did you mean 'transformers'\?",
    ),
    "seed": ({"seed": -1}, r"m\.options\.seed: is -1, and vLLM takes seeds from 0 to 4294967295"),
    "offloaded weights on a CPU": ({"cpu_offload_gb": 4}, r"m\.options\.cpu_offload_gb: needs a GPU: it moves weights"),
    "offloaded cache on a CPU": ({"kv_offloading_size": 1.0}, r"m\.options\.kv_offloading_size: needs a GPU: it moves"),
    "groups of offloaded layers on a CPU": (
        {"offload_group_size": 2},
        r"m\.options\.offload_group_size: needs a GPU: ",
    ),
    "quantization by layer without quantization": (
        {"quantization_config": {"linear": "fp8_per_token"}},
        r"m\.options\.quantization_config: has no effect without options\.quantization; set that to online",
    ),
    "nodes of GPUs": ({"numa_bind": True}, r"m\.options\.numa_bind: needs a GPU: it binds"),
    "profiler of a GPU": (
        {"profiler_config": {"profiler": "cuda"}},
        r"m\.options\.profiler_config\.profiler: cuda needs a GPU; omit it",
    ),
    "limit of waiting requests": (
        {"max_num_queued_reqs": 4},
        r"m\.options\.max_num_queued_reqs: must not be 4, because vLLM would fail jobs beyond it",
    ),
    "parser of another field": (
        {"structured_outputs_config": {"reasoning_parser": "qwen3"}},
        r"m\.options\.structured_outputs_config\.reasoning_parser: .* set chat\.reasoning_parser instead",
    ),
    "heads of an override": (
        {"hf_overrides": {"num_attention_heads": 7}},
        r"m\.options\.hf_overrides: .* cannot be used: the number of attention heads \(7\) is no multiple .*\(3\)",
    ),
    "positions of an override": (
        {"hf_overrides": {"rope_parameters": {"rope_type": "none", "factor": 2.0}}},
        r"m\.options\.hf_overrides: .* cannot be used: Unknown RoPE scaling type none",
    ),
    "incomplete positions of an override": (
        {"hf_overrides": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}},
        r"m\.options\.hf_overrides: .* rope_parameters of the type yarn need original_max_position_embeddings",
    ),
    "unknown operator": (
        {"ir_op_priority": {"rms_norm": ["none"]}},
        r"m\.options\.ir_op_priority: .* cannot be used: rms_norm has no none here; it has .*native",
    ),
    "unit of prefixes": (
        {"prefix_match_unit": 3},
        r"m\.options\.prefix_match_unit: is for models with several kinds of layers; .* block size \(128\); omit it",
    ),
    "interval of prefixes": (
        {"prefix_cache_retention_interval": 3},
        r"m\.options\.prefix_cache_retention_interval: is for models with a sliding window or with Mamba layers",
    ),
    "memory that is not there": (
        {"kv_cache_memory_bytes": None, "gpu_memory_utilization": 1.0},
        r"m\.options\.gpu_memory_utilization: is 1\.0, which reserves \S+ GB for .*, and \S+ GB are available; set"
        r" options\.kv_cache_memory_bytes to the size of the KV cache, or this to at most 0\.\d+",
    ),
    # Errors of vLLM that name no option: it is the one without which vLLM accepts the others.
    "parallel contexts": (
        {"decode_context_parallel_size": 2},
        r"m\.options\.decode_context_parallel_size: vLLM refuses it: tp_size=1 must be divisible by dcp_size=2",
    ),
    "experts of a model that has none": (
        {"enable_expert_parallel": True},
        r"m\.options\.enable_expert_parallel: vLLM refuses it: Number of experts in the model must be greater than 0",
    ),
    "unknown connector": (
        {"kv_transfer_config": {"kv_connector": "None", "kv_role": "kv_both"}},
        r"m\.options\.kv_transfer_config: vLLM refuses it: Unsupported connector type: None",
    ),
    "rank of a replica": (
        {"data_parallel_rank": 1},
        r"m\.options\.data_parallel_rank: vLLM refuses it: data_parallel_external_lb",
    ),
    "unknown architecture": (
        {"hf_overrides": {"architectures": ["None"]}},
        r"m\.options\.hf_overrides: vLLM refuses it: Model architectures \['None'\] are not supported",
    ),
}
