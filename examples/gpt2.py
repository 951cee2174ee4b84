"""Selective attention in a GPT-2 with its own weights frozen: only the new parameters are trained."""

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import exsel

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=256, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
)
model = GPT2LMHeadModel(config)  # or AutoModelForCausalLM.from_pretrained("openai-community/gpt2")

before = dict(model.named_parameters())
exsel.upgrade(model, selective=exsel.SelectiveConfig(token="mlp"))
for parameter in before.values():
    parameter.requires_grad_(False)
new = [parameter for parameter in model.parameters() if parameter.requires_grad]
print(f"{sum(p.numel() for p in new):,} new parameters beside {sum(p.numel() for p in before.values()):,}")

# Any training loop and any trainer will do. Here: bytes of one sentence, ten steps.
tokens = torch.tensor([list(b"A token that knows what it looks for looks sharply. ")] * 4)
optimizer = torch.optim.AdamW(new, lr=0.1, weight_decay=0.0)
losses = []
for _ in range(10):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
assert losses[-1] < losses[0]

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
model.eval().save_pretrained(folder)

# The mechanisms are in the folder, and come back with either call.
with torch.inference_mode():
    expected = model(input_ids=tokens).logits
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        torch.testing.assert_close(load(folder)(input_ids=tokens).logits, expected, rtol=0, atol=0)

prompt = torch.tensor([list(b"A token ")])
written = exsel.from_pretrained(folder).generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
print(bytes(written[0].tolist()).decode(errors="replace"))

# And out again: the model is what it was.
exsel.downgrade(model)
assert dict(model.named_parameters()).keys() == before.keys()
