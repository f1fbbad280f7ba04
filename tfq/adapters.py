"""What adapters add to a model, and whether anything was added to a layer.

LoRA (peft) puts a wrapper in the place of a layer, IP-Adapters put layers into attention processors.
These side paths stay as they are, and no plan or file names them.
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
