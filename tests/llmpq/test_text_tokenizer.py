"""Tokenizers and configurations that do without transformers say what transformers says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoConfig
from transformers.utils.chat_template_utils import render_jinja_template

from llmpq.chat_template import ChatTemplate
from llmpq.model import read_config
from llmpq.text_tokenizer import load_text_tokenizer
from llmpq.tokenizer import load_tokenizer

DATA = Path(__file__).parents[1] / "data"
MODELS = [str(DATA / name) for name in ("opt-bytes", "bloom-bytes", "stories260K")]
TEXT = "  Once upon a time,\n\tthere wasn't a  naïve 日本語 🎉 <s> </s> end. "
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief <b>&</b>."},
    {"role": "user", "content": "One?\n", "name": None},
    {"role": "assistant", "content": " two", "reasoning": "so"},
    {"role": "user", "content": "Three é?"},
]
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ 'none' }}{% endif %}\n"
        "    {{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}\n"
        "  {% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
    ),
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}{{ p }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ dict(a=1) | tojson(sort_keys=true) }}",
    "no name": "{% for m in messages %}{{ 'name' in m }}{{ m.name is defined }}{% endfor %}{{ tools is none }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}",
    "namespace": (
        "{% set ns = namespace(self=0, n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.self }}"
    ),
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.content }}{{ x }}{% endgeneration %}"
        "{{ x }}{% continue %}{% endfor %}"
    ),
    "keys": "{{ dict.fromkeys(['a', 'b']) }}{{ strftime_now('%Y') }}",
}
REFUSING = {
    "by itself": "{{ raise_exception('Roles must alternate.') }}",
    "private namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "private field": "{{ namespace(_a=1) }}",
    "out of the sandbox": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}",
    "out of dict": "{{ dict.__class__.__mro__ }}",
    "changes messages": "{{ messages.append(1) }}",
    "unknown": "{{ nothing.there }}",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def _of_transformers(template: str) -> str:
    plain = [{key: value for key, value in message.items() if value is not None} for message in CHAT]
    rendered, _ = render_jinja_template([plain], chat_template=template, add_generation_prompt=True, **TOKENS)
    return str(rendered[0])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_is_rendered_as_by_transformers(template: str) -> None:
    """Whitespace, filters, globals, loop controls, scopes and special tokens are the same."""
    assert ChatTemplate(template, TOKENS).render(CHAT) == _of_transformers(template)


@pytest.mark.parametrize("template", REFUSING.values(), ids=REFUSING)
def test_a_template_is_refused_as_by_transformers(template: str) -> None:
    """What transformers' sandbox keeps a template from, ours does too, with an error of the same kind."""
    with pytest.raises(TemplateError) as theirs:
        _of_transformers(template)
    with pytest.raises(type(theirs.value)):
        ChatTemplate(template, TOKENS).render(CHAT)


@pytest.mark.parametrize("model", MODELS)
def test_a_kept_tokenizer_says_what_transformers_says(model: str) -> None:
    """Text with spaces, characters of several bytes and special tokens goes both ways alike."""
    ours, theirs = load_text_tokenizer(model), load_tokenizer(model)

    for text in (TEXT, "", "a"):
        tokens = theirs(text)["input_ids"]
        assert ours.encode(text) == tokens
        assert ours.encode(text, adds_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    assert ours.eos_token_id == theirs.eos_token_id


def test_a_tokenizer_with_ways_of_its_own_stays_with_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a class decodes in another way, what it says counts, the first time and later."""
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(MODELS[0])

    class Shouting(type(tokenizer)):  # type: ignore[misc]  # a class that is known at run time
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return str(super()._decode(*args, **kwargs)).upper()

    tokenizer.__class__ = Shouting
    monkeypatch.setattr("llmpq.text_tokenizer.load_tokenizer", lambda _: tokenizer)

    for _ in range(2):
        ours = load_text_tokenizer(MODELS[0])
        assert ours.decode(ours.encode("abc")) == "ABC"


@pytest.mark.parametrize("model", MODELS)
def test_a_configuration_is_whole(model: str) -> None:
    """The class of transformers comes back from the data with every attribute, and names of its own are known too."""
    ours, theirs = read_config(model), AutoConfig.from_pretrained(model)

    assert ours.as_transformers().to_dict() == theirs.to_dict()
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "eos_token_id", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert not hasattr(ours, "no_such_setting")


def test_a_host_that_knows_a_model_does_not_import_transformers() -> None:
    """The second process that reads a model needs neither transformers nor torch, which take seconds to import."""
    program = (
        "import sys, coordinator.server\n"
        "from coordinator.tokenizing import ModelTokenizer\n"
        "ModelTokenizer.load(sys.argv[1])\n"
        "print({'torch', 'transformers', 'optimum', 'gguf'} & set(sys.modules) or 'none')\n"
    )
    load_text_tokenizer(MODELS[0])
    read_config(MODELS[0])
    done = subprocess.run([sys.executable, "-c", program, MODELS[0]], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "none"
