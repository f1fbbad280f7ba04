"""Key and value of a prompt, computed once for all steps of a sampling run."""

import contextvars

from tfq._context import during
from tfq.ops._checks import is_traced

# Prompts kept at once: with guidance some loops alternate between two.
_TEXTS = 2

_current = contextvars.ContextVar("tfq text cache", default=None)


class TextCache:
    """What cross-attentions computed of the last prompts."""

    def __init__(self):
        self.texts = {}  # id -> (text, version, {key: [compute, result]})

    def products(self, text):
        """The dict of a prompt's results, made new if the tensor is not known or was written to."""
        entry = self.texts.get(id(text))
        if entry is None or entry[1] != text._version:
            self.texts.pop(id(text), None)
            while len(self.texts) >= _TEXTS:
                del self.texts[next(iter(self.texts))]
            entry = self.texts[id(text)] = (text, text._version, {})
        return entry[2]

    def keep(self, text):
        """Forget every other prompt."""
        self.texts = {key: entry for key, entry in self.texts.items() if entry[0] is text}

    def compute_again(self):
        """Replace every result by a new one."""
        for _, _, products in self.texts.values():
            for entry in products.values():
                entry[1] = entry[0]()


def use(cache):
    """Cross-attentions take from `cache` and add to it, in this thread."""
    return during(_current, cache)


def reuse_text():
    """Context manager: compute key and value of a prompt once, inside of the block, in this thread.

    The text does not change from step to step, so neither do key and value of the cross-attentions of a
    converted model. Inside of the block a call that gets the same tensor as ``encoder_hidden_states``
    as one of the calls before takes what that one computed; the outputs are the same bits. Same means the
    same object with nothing written to it in between: what the loops of diffusers' pipelines pass. Any
    other tensor is computed as usual, and so is the text of a model that projects it first. The layers
    must not be changed inside of the block. At its end everything is released.

    Examples
    --------
    >>> import tfq
    >>> with tfq.reuse_text():
    ...     pass  # image = pipe("a lighthouse").images[0]
    """
    return use(TextCache())


def key_value(key, text, compute):
    """``compute()``, two tensors that depend on `text` alone; the result before for the same `key`."""
    if is_traced(text) or text.is_inference():
        return compute()
    cache = _current.get()
    if cache is None:
        return compute()
    products = cache.products(text)
    if key not in products:
        products[key] = [compute, compute()]
    return products[key][1]
