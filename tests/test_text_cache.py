"""tfq.reuse_text: key and value of a prompt once for all steps, with the same bits."""

import threading

import pytest
import torch
from tolerance import assert_same_bits
from unets import build, inputs, run

import tfq
from tfq import nn as quantized
from tfq.attention import Attention


@pytest.fixture(scope="module", params=["cross", "cross_linear", "cross_only"])
def unet(request):
    return tfq.convert(build(request.param))


def text_products(unet):
    """Names of the key and value layers of cross-attentions, as they are called, and a handle."""
    seen = []
    product = quantized.Linear.product
    names = {
        id(layer): f"{name}.{child}"
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.cross_attention_dim != module.query_dim
        for child, layer in (("to_k", module.to_k), ("to_v", module.to_v))
    }

    def counted(self, *args, **kwargs):
        if id(self) in names:
            seen.append(names[id(self)])
        return product(self, *args, **kwargs)

    return names, seen, counted


def test_products_of_the_text_are_made_once(unet, monkeypatch):
    names, seen, counted = text_products(unet)
    assert names
    monkeypatch.setattr(quantized.Linear, "product", counted)
    first, text = inputs(unet), inputs(unet)["encoder_hidden_states"]
    steps = [
        first | {"timestep": torch.tensor(t), "encoder_hidden_states": text} for t in (9, 5, 2)
    ]
    expected = [run(unet, step) for step in steps]
    assert len(seen) == 3 * len(names)
    seen.clear()
    with tfq.reuse_text():
        outputs = [run(unet, step) for step in steps]
    assert sorted(seen) == sorted(names.values())
    for output, wanted in zip(outputs, expected, strict=True):
        assert_same_bits(output, wanted)
    seen.clear()
    run(unet, steps[0])  # nothing is kept after the block
    assert len(seen) == len(names)


def test_another_text_is_computed(unet):
    kwargs = inputs(unet)
    text = kwargs["encoder_hidden_states"]
    other = inputs(unet, seed=2)["encoder_hidden_states"]
    expected = run(unet, kwargs), run(unet, kwargs | {"encoder_hidden_states": other})
    assert not torch.equal(*expected)
    with tfq.reuse_text():
        assert_same_bits(run(unet, kwargs), expected[0])
        assert_same_bits(run(unet, kwargs | {"encoder_hidden_states": other}), expected[1])
        assert_same_bits(run(unet, kwargs), expected[0])
        text.copy_(other)  # the same object, written to
        assert_same_bits(run(unet, kwargs), expected[1])


def test_only_the_last_prompts_are_kept(unet):
    kwargs = inputs(unet)
    texts = [torch.randn_like(kwargs["encoder_hidden_states"]) for _ in range(4)]
    expected = [run(unet, kwargs | {"encoder_hidden_states": text}) for text in texts]
    cache = tfq.text_cache.TextCache()
    with tfq.text_cache.use(cache):
        for text, wanted in zip(texts, expected, strict=True):
            assert_same_bits(run(unet, kwargs | {"encoder_hidden_states": text}), wanted)
        assert [entry[0] for entry in cache.texts.values()] == texts[2:]


def test_other_threads_are_not_concerned(unet, monkeypatch):
    names, seen, counted = text_products(unet)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    monkeypatch.setattr(quantized.Linear, "product", counted)
    with tfq.reuse_text():
        run(unet, kwargs)
        seen.clear()
        thread = threading.Thread(target=lambda: assert_same_bits(run(unet, kwargs), expected))
        thread.start()
        thread.join()
        assert len(seen) == len(names)


def test_inference_tensors_are_computed(unet):
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    with torch.inference_mode():
        text = kwargs["encoder_hidden_states"].clone()
    with tfq.reuse_text():
        for _ in range(2):
            assert_same_bits(run(unet, kwargs | {"encoder_hidden_states": text}), expected)
