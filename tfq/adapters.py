"""What adapters add to a model, and whether anything was added to a layer.

LoRA (peft) puts a wrapper in the place of a layer, IP-Adapters put layers into attention processors.
These side paths stay as they are, and no plan or file names them. A graph that was captured is bound to them.
"""

from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import MultiIPAdapterImageProjection


def base_modules(model):
    """The modules of a model without what adapters added, by the names they have without them.

    Returns
    -------
    dict
        As ``dict(model.named_modules())``; a layer that peft wraps is under the wrapper's name.
    """
    modules, seen = {}, set()

    def visit(name, module):
        module = base_layer(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        modules[name] = module
        for child_name, child in module._modules.items():
            if child is not None and not _is_adapter(module, child_name, child):
                visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return modules


def base_layer(module):
    """The layer inside a wrapper of peft, or `module` itself."""
    while "base_layer" in module._modules:
        module = module._modules["base_layer"]
    return module


def is_wrapped(module):
    """Whether `module` is a wrapper of peft."""
    return base_layer(module) is not module


def _is_adapter(parent, name, child):
    return isinstance(child, MultiIPAdapterImageProjection) or (
        name == "processor" and isinstance(parent, Attention)
    )


def is_untouched(*modules):
    """Whether calling these modules does no more than their class says: no hook, no patched forward."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return False
    return True


# Attributes that the forward of a wrapper of peft reads, and FreeU's of an up block.
_OF_WRAPPERS = ("_disable_adapters", "_active_adapter", "scaling", "merged_adapters")
_OF_UP_BLOCKS = ("s1", "s2", "b1", "b2")


class Structure:
    """Which modules a model has now, and how what was added to it is set: adapters, processors, FreeU."""

    def __init__(self, model):
        modules = list(model.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._attributes = [(m.__dict__, _OF_WRAPPERS) for m in modules if is_wrapped(m)]
        self._attributes += [(b.__dict__, _OF_UP_BLOCKS) for b in getattr(model, "up_blocks", ())]
        self._attentions = [module for module in modules if isinstance(module, Attention)]
        self._seen = self._read()

    def has_changed(self):
        """Whether anything is another than when this was made."""
        return self._read() != self._seen

    def _read(self):
        processors = [attention.processor for attention in self._attentions]
        return (
            [list(children.values()) for children in self._children],
            [[_copy(values.get(name)) for name in names] for values, names in self._attributes],
            processors,
            [_copy(getattr(processor, "scale", None)) for processor in processors],  # IP-Adapter's
        )


def _copy(value):
    return value.copy() if isinstance(value, (dict, list)) else value
