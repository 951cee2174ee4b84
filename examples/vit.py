"""Exclusive attention with a learned strength in a ViT: upgrade, fine-tune, save, load, classify."""

import sys
import tempfile

import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import exsel

torch.manual_seed(0)
config = ViTConfig(
    image_size=16,
    patch_size=4,
    num_channels=1,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_labels=2,
)
model = ViTForImageClassification(config)  # or AutoModelForImageClassification.from_pretrained("…")
exsel.upgrade(model, exclusive=exsel.ExclusiveConfig(strength="learned"))


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with stripes that lie or stand, in noise."""
    labels = torch.arange(count) % 2
    stripes = (torch.arange(16) // 4 % 2).float().expand(count, 1, 16, 16)
    pictures = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.transpose(2, 3))
    return pictures + 0.3 * torch.randn(count, 1, 16, 16), labels


optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model.train()
for _ in range(10):
    pictures, labels = draw(32)
    loss = model(pixel_values=pictures, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
model.eval().save_pretrained(folder)

# The mechanisms are in the folder, and come back with either call.
pictures, labels = draw(100)
with torch.inference_mode():
    logits = model(pixel_values=pictures).logits
    for load in (exsel.from_pretrained, AutoModelForImageClassification.from_pretrained):
        torch.testing.assert_close(load(folder)(pixel_values=pictures).logits, logits, rtol=0, atol=0)
accuracy = (logits.argmax(-1) == labels).float().mean()
print(f"{accuracy:.0%} of new pictures told right")
assert accuracy > 0.9
