"""The plan of a conversion beside its tensors, so that no model of another plan takes them.

Whether an input has a range by timestep, or two bytes, changes neither the name nor the shape of a
tensor: under another plan the tensors of a state dict fit, and give wrong images. The plan is therefore
one of them, and ``load_state_dict`` compares it before it changes anything.
"""

import json

import torch

# Of the tensor in a state dict.
PLAN = "time_embedding.plan"
# Of LayerPlan: what the tensors of a layer mean.
_FIELDS = ("weight_bits", "activations", "ranges", "sources")


def encode_plans(plans):
    """What becomes of each layer, as uint8 ``(bytes,)`` of JSON: name -> fields, null: it is float."""
    layers = {
        plan.name: [getattr(plan, field) for field in _FIELDS] if plan.converted else None
        for plan in plans
    }
    text = json.dumps(layers, separators=(",", ":"))
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def _decode(plan):
    return json.loads(bytes(plan.cpu().tolist()))


def plan_difference(**plans):
    """What two encoded plans make of the first layer that they treat differently; None if of none.

    Parameters
    ----------
    **plans : Tensor
        From :func:`encode_plans`, by the names that the text has for where they are from.
    """
    (source, theirs), (target, ours) = ((name, _decode(plan)) for name, plan in plans.items())
    for name in [*ours, *theirs]:
        found, wanted = theirs.get(name), ours.get(name)
        if found != wanted:
            return f"{name} has {_described(found)} in the {source}, {_described(wanted)} in the {target}"
    return None


def _described(fields):
    if fields is None:
        return "float weights"
    pairs = zip(_FIELDS, fields, strict=True)
    return " ".join(f"{name}={value!r}" for name, value in pairs if value != [])


def guard_state(model):
    """Let ``load_state_dict`` of a converted model refuse the state of another plan.

    Returns
    -------
    list
        Handles of the hooks.
    """
    return [
        model.register_load_state_dict_pre_hook(_check_state),
        model.register_load_state_dict_post_hook(_take_timesteps),
    ]


def _check_state(model, state_dict, prefix, *arguments):
    plan = state_dict.get(prefix + PLAN)
    if plan is None:  # a part, such as an adapter's; else torch says what is missing
        return
    if difference := plan_difference(state=plan, model=model.time_embedding.plan):
        raise ValueError(
            f"load_state_dict: the state is of another conversion: {difference}; load the folder that "
            f"it was saved to with {type(model).__name__}.from_pretrained, or convert the model with "
            f"the same arguments first"
        )


def _take_timesteps(model, incompatible_keys):
    """The rows came with the state, and ``config.json`` has their timesteps."""
    conversion = model._tfq_conversion
    conversion.timesteps = model.time_embedding.values.tolist()
    if conversion.corrected:
        conversion.corrected = model.output_correction.values.tolist()
