"""What to write where a framework builds the loader or the optimizer, or calls the model: its own words for a setting.

Names as of pytorch-lightning 2.6, transformers 5 and accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Mapping

_TRAINING = "TrainingArguments"
_PINNED = "DataLoader(..., pin_memory=True)"

WORDS: Mapping[str, Mapping[str, str]] = {
    "lightning": {
        "amp=bf16": 'Trainer(precision="bf16-mixed")',
        "amp=fp16": 'Trainer(precision="16-mixed")',
        "optimizer_kernel=fused": "in configure_optimizers: torch.optim.Adam(..., fused=True)",
        "optimizer_kernel=foreach": "in configure_optimizers: torch.optim.Adam(..., foreach=True)",
        "optimizer_kernel=for-loop": "in configure_optimizers: torch.optim.Adam(..., foreach=False, fused=False)",
        "torch_compile=default": "trainer.fit(torch.compile(module), ...)",
        "torch_compile=dynamic": "trainer.fit(torch.compile(module, dynamic=True), ...)",
        "torch_compile": 'trainer.fit(torch.compile(module, mode="{value}"), ...)',
        "dataloader_workers": "in train_dataloader: DataLoader(..., num_workers={value}, persistent_workers=True)",
        "dataloader_workers=0": "in train_dataloader: DataLoader(...) without num_workers",
        "pinned_memory=on": f"in train_dataloader: {_PINNED}",
    },
    "transformers": {
        "amp=bf16": f"{_TRAINING}(bf16=True)",
        "amp=fp16": f"{_TRAINING}(fp16=True)",
        "optimizer_kernel=fused": f'{_TRAINING}(optim="adamw_torch_fused")',
        "optimizer_kernel=for-loop": f'{_TRAINING}(optim="adamw_torch")',
        "torch_compile=default": f"{_TRAINING}(torch_compile=True)",
        "torch_compile=dynamic": "model.compile(dynamic=True) before the Trainer is made",
        "torch_compile": f'{_TRAINING}(torch_compile=True, torch_compile_mode="{{value}}")',
        "dataloader_workers": f"{_TRAINING}(dataloader_num_workers={{value}}, dataloader_persistent_workers=True)",
        "dataloader_workers=0": f"{_TRAINING}(dataloader_num_workers=0)",
        "pinned_memory=on": f'{_TRAINING}(dataloader_pin_memory=True, accelerator_config={{"non_blocking": True}})',
    },
    "accelerate": {
        "amp=bf16": 'Accelerator(mixed_precision="bf16")',
        "amp=fp16": 'Accelerator(mixed_precision="fp16")',
        "torch_compile=default": 'Accelerator(dynamo_backend="inductor")',
        "torch_compile=dynamic": ('Accelerator(dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=True))'),
        "torch_compile": 'Accelerator(dynamo_plugin=TorchDynamoPlugin(backend="inductor", mode="{value}"))',
        "pinned_memory=on": (
            f"{_PINNED} and Accelerator(dataloader_config=DataLoaderConfiguration(non_blocking=True))"
        ),
    },
}
"""Framework to setting, or the name of a scenario for its other values, to the words. `{value}` is the value."""


def words(framework: str, name: str, value: str) -> str | None:
    """What to write in a framework's own words; None where it has none for a setting."""
    known = WORDS.get(framework, {})
    text = known.get(f"{name}={value}", known.get(name))
    return None if text is None else text.replace("{value}", value)
