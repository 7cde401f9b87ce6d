"""What only holds a model: adapters are looked through, and what runs another model than the one it holds is refused by name."""

from __future__ import annotations

from typing import Any

from probe.errors import CaptureError

__all__ = ["unwrapped"]

#: Class name of a wrapper -> why it is refused, and how the model inside is reached.
_REFUSED = {
    "OptimizedModule": ("is a model compiled by torch.compile, where hooks do not fire", "model._orig_mod"),
    "DataParallel": ("runs copies of the model that it holds, on parts of a batch", "model.module"),
    "DistributedDataParallel": ("holds the model together with what its gradients need", "model.module"),
    "FullyShardedDataParallel": ("holds the model in shards", "the model itself, before it is sharded"),
    "ScriptModule": (
        "is a model traced or scripted by torch.jit, where hooks do not fire",
        "the model it was made from",
    ),
}


def unwrapped(model: Any) -> Any:
    """The model inside a peft adapter, whose weights it uses; any other model as it is.

    >>> unwrapped(peft.get_peft_model(llava, lora))
    >>> # LlavaForConditionalGeneration(...): record it, or call generate on the adapter inside the context, as you like

    Raises
    ------
    CaptureError
        If it is another wrapper, or an adapter that puts virtual tokens in front of the prompt.
    """
    names = {kind.__name__ for kind in type(model).__mro__}
    for name, (reason, cure) in _REFUSED.items():
        if name in names:
            raise CaptureError(f"{type(model).__name__} {reason}, so it cannot be recorded; record {cure}.")
    if names.isdisjoint(("PeftModel", "PeftMixedModel")):
        return model
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        raise CaptureError(
            f"The adapter {model.active_peft_config.peft_type.value} puts virtual tokens in front of the prompt, which have no "
            "token ids, so rows cannot be matched to tokens; record the model without it: model.get_base_model()."
        )
    return model.get_base_model() if hasattr(model, "get_base_model") else model.base_model.model
