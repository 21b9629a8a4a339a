"""The members of chunks."""

from __future__ import annotations

from tests.support.dialects.base import HI, STOP, Dialect, chunk, delta, end, frames, part, says_hi

AZURE_FIRST = chunk(
    prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}]
)
AZURE_ANNOTATION = chunk({"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 9}})
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}], "closed": True}
CHUNKS = (
    says_hi("reasoning as an object", "gateways", delta(reasoning={"content": "Hm. "}), *HI, end(), reasoning="Hm. "),
    says_hi(
        "Azure: filter results first, annotations without a delta",
        "langchain-ai/langchain#18977",
        AZURE_FIRST,
        *HI,
        AZURE_ANNOTATION,
        end(),
    ),
    says_hi(
        "Azure: the delta is null",
        "bagofwords1/bagofwords#742",
        part("Hi "),
        chunk({"index": 0, "delta": None}),
        part("there"),
        end(),
    ),
    says_hi("content null with the role", "darshi1337/apogee#139", delta(role="assistant", content=None), *HI, end()),
    says_hi(
        "Mistral: content in parts",
        "meilisearch/meilisearch#6327",
        part([{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "Hi "}]),
        part("there"),
        end(),
    ),
    says_hi(
        "Mistral: thinking parts",
        "n8n-io/n8n#37352",
        part([THINKING]),
        part([{"type": "text", "text": "Hi there"}]),
        end(),
        reasoning="Hm. ",
    ),
    says_hi("content is a list of strings", "NousResearch/hermes-agent#94905", part(["Hi ", "there"]), end()),
    says_hi("the last text with the finish reason", "jeremychone/rust-genai#164", part("Hi "), part("there", "stop")),
    says_hi(
        "message in place of delta",
        "perplexityai/api-discussion#209",
        chunk({"index": 0, "message": {"role": "assistant", "content": "Hi "}}),
        chunk({"index": 0, "message": {"content": "there"}, "finish_reason": "stop"}),
    ),
    says_hi(
        "both delta and the message so far",
        "perplexityai/api-discussion#209",
        chunk({"index": 0, "delta": {"content": "Hi "}, "message": {"content": "Hi "}}),
        chunk({"index": 0, "delta": {"content": "there"}, "message": {"content": "Hi there"}, "finish_reason": "stop"}),
    ),
    says_hi(
        "Together: text beside the delta",
        "Together API reference",
        chunk(
            {
                "index": 0,
                "text": "Hi there",
                "delta": {"content": "Hi there", "token_id": 1},
                "logprobs": None,
                "finish_reason": "stop",
                "seed": 5,
            }
        ),
    ),
    says_hi("choices is one object", "JSON", {"choices": {"delta": {"content": "Hi there"}, "finish_reason": "stop"}}),
    says_hi(
        "a choice without an index",
        "gateways",
        {"choices": [{"delta": {"content": "Hi there"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ),
    says_hi(
        "the index is null",
        "gateways",
        chunk({"index": None, "delta": {"content": "Hi there"}, "finish_reason": "stop"}),
    ),
    says_hi(
        "the index is a float", "JSON", chunk({"index": 0.0, "delta": {"content": "Hi there"}, "finish_reason": "stop"})
    ),
    says_hi(
        "unknown members everywhere",
        "OpenRouter, Azure, DeepSeek",
        chunk(
            {
                **STOP,
                "delta": {"content": "Hi there", "annotations": [], "obfuscation": "x", "reasoning_details": []},
                "native_finish_reason": "STOP",
                "matched_stop": 2,
            },
            provider="x",
            service_tier="default",
            citations=["u"],
        ),
    ),
    says_hi("chunks without anything", "NVIDIA NIM", {}, chunk(), chunk({"index": 0, "delta": {}}), *HI, end()),
    says_hi("an error member that is null", "gateways", part("Hi there", error=None), end(error={})),
    says_hi(
        "reasoning_content",
        "DeepSeek API reference",
        delta(reasoning_content="Hm. ", content=None),
        *HI,
        end(),
        reasoning="Hm. ",
    ),
    says_hi("reasoning", "OpenRouter API reference", delta(reasoning="Hm. ", content=""), *HI, end(), reasoning="Hm. "),
    says_hi(
        "both names of reasoning",
        "vLLM",
        delta(reasoning="Hm. ", reasoning_content="Hm. "),
        *HI,
        end(),
        reasoning="Hm. ",
    ),
    says_hi("a refusal", "OpenAI API reference", delta(content=None, refusal="I will not."), end(), text="I will not."),
    says_hi(
        "a refusal beside an empty text",
        "OpenAI API reference",
        delta(content="", refusal="I will "),
        chunk({"index": 0, "delta": {"content": "", "refusal": "not."}}),
        end(),
        text="I will not.",
    ),
    says_hi(
        "an error without content in each chunk",
        "gateways",
        part("Hi ", error={"message": "", "type": "", "code": None}),
        part("there", error={"message": "", "type": "", "code": None}),
        end(error={"message": "", "type": "", "code": None}),
    ),
    says_hi(
        "the index of the only choice is 1 at its end",
        "BerriAI/litellm#376",
        *HI,
        chunk({"index": 1, "delta": {}, "finish_reason": "stop"}),
    ),
    says_hi(
        "the index of the only choice is 1",
        "BerriAI/litellm#376",
        chunk({"index": 1, "delta": {"content": "Hi "}}),
        chunk({"index": 1, "delta": {"content": "there"}}),
        chunk({"index": 1, "delta": {}, "finish_reason": "stop"}),
    ),
    Dialect(
        name="a second choice that nobody asked for",
        source="BerriAI/litellm#376",
        writes=frames(part("Hi "), chunk({"index": 1, "delta": {"content": "Hello"}}), end()),
        text="Hi ",
        error="not OpenAI's stream",
        finish="stop",
    ),
    says_hi(
        "logprobs that nobody asked for",
        "vllm-project/vllm#1967",
        chunk({"index": 0, "delta": {"content": "Hi there"}, "logprobs": {"content": [{}]}}),
        end(),
    ),
    Dialect(
        name="a completion answered like a chat",
        source="gateways",
        chat=False,
        writes=frames(*HI, end()),
        text="Hi there",
    ),
    Dialect(
        name="a completion",
        source="OpenAI API reference",
        chat=False,
        writes=frames(
            chunk({"index": 0, "text": "Hi "}), chunk({"index": 0, "text": "there", "finish_reason": "length"})
        ),
        text="Hi there",
        finish="length",
    ),
)
