"""The list of models that may bill hidden output."""

from __future__ import annotations

import pytest

from koo.ai.models import may_think_unseen
from koo.options import ServiceOptions

SERVICE = ServiceOptions(name="lab", kind="openai_compatible", model="m", api_key="k")


@pytest.mark.parametrize(
    "model",
    [
        "claude-3-5-sonnet-20241022", "claude-haiku-4-5", "gpt-4o-mini", "openai/gpt-4.1", "GPT-3.5-turbo",
        "models/gemini-1.5-pro", "gemini-2.0-flash", "meta-llama/Llama-3.3-70B-Instruct",
    ],
)  # fmt: skip
def test_some_models_show_all_the_tokens_that_they_bill(model: str) -> None:
    assert not may_think_unseen(SERVICE, model)


@pytest.mark.parametrize(
    "model",
    [
        "claude-sonnet-5-5", "o3-mini", "gpt-5", "gpt-6.1-terra", "gpt-oss-120b", "gemini-2.5-flash",
        "gemini-3.8-flash", "deepseek-reasoner", "perplexity/sonar", "m", "", "nvidia/llama-3.3-nemotron-super-49b",
    ],
)  # fmt: skip
def test_other_and_unknown_models_may_have_hidden_reasoning(model: str) -> None:
    assert may_think_unseen(SERVICE, model)


@pytest.mark.parametrize("thinks", [False, True])
def test_a_services_setting_overrides_the_table(thinks: bool) -> None:
    service = ServiceOptions(name="lab", kind="openai", model="m", api_key="k", thinks_unseen=thinks)
    assert may_think_unseen(service, "gpt-4o") is may_think_unseen(service, "o3") is thinks
