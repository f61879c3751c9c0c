"""The names of the fields that each API knows at the top of a body: those that are read here, and
those of its own specification that have no effect.
"""

from __future__ import annotations

from slime_router.api.chat.fields import ChatFields

_SCALARS = frozenset(ChatFields.model_fields)
_ALIASES = frozenset(
    (
        *("data_parallel_rank", "thinking_token_budget", "structured_outputs"),
        *(f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar", "structural_tag")),
        *("functions", "function_call", "reasoning", "json_schema", "response_format"),
    )
)
UNENFORCED = frozenset(  # vLLM's, which ask for what SGLang's workers do not do
    (
        *("allowed_token_ids", "bad_words", "length_penalty", "mm_processor_kwargs"),
        *("repetition_detection", "stream_interval", "truncate_prompt_tokens"),
        *("use_beam_search", "vllm_xargs"),
    )
)
_SESSION = frozenset(("metadata", "prompt_cache_key", "session_id", "user"))
_OF_A_SERVICE = frozenset(  # of OpenAI's own service; nothing here depends on them
    (
        *("moderation", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "store", "verbosity"),
    )
)

CHAT_FIELDS = _SCALARS | _ALIASES | _SESSION | _OF_A_SERVICE
CHAT_FIELDS |= {"messages", "tools", "tool_choice", "input_ids", "prompt_token_ids"}
CHAT_FIELDS |= {"required_prefix_token_ids"}
CHAT_FIELDS |= {"audio", "prediction", "web_search_options"}
COMPLETION_FIELDS = _SCALARS | _ALIASES | _SESSION | {"prompt", "echo", "best_of", "suffix"}
RESPONSES_FIELDS = CHAT_FIELDS | {
    *("access_programs", "background", "background_options", "context_management"),
    *("conversation", "image", "include", "input", "instructions", "max_output_tokens"),
    *("max_tool_calls", "previous_response_id", "prompt", "text", "truncation"),
}
MESSAGES_FIELDS = (
    _SCALARS & {"model", "max_tokens", "temperature", "top_p", "top_k", "stream"}
) | {
    *("messages", "system", "stop_sequences", "tools", "tool_choice", "thinking", "metadata"),
    *("output_config", "output_format", "thread", "service_tier", "cache_control", "container"),
    *("context_management", "mcp_servers", "betas", "billing_policy", "compaction", "diagnostics"),
    *("fallback_credit_token", "fallbacks", "inference_geo", "speed", "user_profile_id"),
    *("workspace_id", "session_id", "prompt_cache_key", "user", "history", "seed", "rid"),
    *("chat_template_kwargs", "lora_path", "extra_key", "cache_salt", "priority"),
    *("session_params", "custom_params", "custom_logit_processor", "custom_labels"),
    *("routed_dp_rank", "data_parallel_rank", "bootstrap_host", "bootstrap_port"),
    "bootstrap_room",
}
TOKEN_FIELDS = _SESSION | {
    *("token_ids", "sampling_params", "model", "stream", "stream_options", "request_id"),
    *("cache_salt", "priority", "lora_path", "extra_key", "return_routed_experts"),
    *(
        "routed_experts_start_len",
        "features",
        "content_parts",
        "kv_transfer_params",
        "ec_transfer_params",
        "n",
    ),
}
