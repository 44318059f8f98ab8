"""LoRA on a model of zoo, by the library peft: a few low-rank matrices are trained, the rest stays as it is.

Run it with `python examples/lora.py [epochs]`; it needs the extras `train` and `lora`. First a model learns the digits 0
to 4, then LoRA on its attention teaches it all ten. Paper: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import sys

import lightning
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.data.base import Data
from zoo.registry import make
from zoo.training import DataModule, ZooModule
from zoo.training.evaluate import checked, evaluate

IMAGES = {"image_size": 8, "patch_size": 2, "channels": 1, "position": {"type": "learned", "std": 0.5}}


def main(epochs: int = 15) -> None:
    """Trains, adapts, merges, and shows what each step did."""
    lightning.seed_everything(0)
    digits = make(checked("data", {"type": "digits", "shift": 0.5}))
    model = zoo.build("vit-tiny", {"embedding": IMAGES, "stack.depth": 2, "head.classes": 10})
    fit(ZooModule(model, optimizer={"lr": 1e-3, "warmup": 0.1}), epochs, DataLoader(few(digits), batch_size=64, shuffle=True))
    print(f"trained on 0 to 4:      accuracy on all ten {accuracy(model):.3f}")

    # any Linear can be adapted, by the end of its name; the head is trained as a whole
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "up", "down"], modules_to_save=["head"])
    adapted = get_peft_model(model, adapters)
    trained, whole = adapted.get_nb_trainable_parameters()
    print(f"LoRA: {trained:,} of {whole:,} parameters are trained")
    module = ZooModule(adapted.get_base_model(), optimizer={"lr": 3e-3, "warmup": 0.1})
    fit(module, epochs, DataModule(digits))
    print(f"with LoRA on 0 to 9:    accuracy on all ten {accuracy(adapted.get_base_model()):.3f}")

    pixels = digits.split("test").tensors["pixel_values"][:64]
    with torch.inference_mode():
        apart = adapted.eval()(pixels).logits
        merged = adapted.merge_and_unload()
        together = merged.eval()(pixels).logits
    print(f"merged into the weights: the largest difference of a logit is {float((apart - together).abs().max()):.1e}")
    zoo.save(merged, "lora-merged")  # an ordinary model again
    print(f"read back:              accuracy on all ten {accuracy(zoo.load('lora-merged')):.3f}")


def fit(module: ZooModule, epochs: int, data: object) -> None:
    """A short training on the CPU."""
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, data)


def few(digits: Data) -> TensorDataset:
    """The training images of 0 to 4, with their labels."""
    everything = digits.split("train").tensors
    wanted = everything["labels"] < 5
    return TensorDataset(everything["pixel_values"][wanted], everything["labels"][wanted])


def accuracy(model: torch.nn.Module) -> float:
    """On the test images of all ten digits."""
    return evaluate(model, "digits").metrics["accuracy"]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
