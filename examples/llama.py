"""Both mechanisms in a Llama: upgrade, fine-tune, save, load, generate. Start from your own with `from_pretrained`."""

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import exsel

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = LlamaForCausalLM(config)  # or AutoModelForCausalLM.from_pretrained("…")

print(exsel.support(model))  # what would happen, layer by layer
exsel.upgrade(model, exclusive=True, selective=True)

# Any training loop and any trainer will do. Here: bytes of one sentence, ten steps.
text = "Attention that leaves itself out has more to say about others. "
tokens = torch.tensor([list(text.encode())] * 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
model.train()
for _ in range(10):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f}")
assert losses[-1] < losses[0]

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
model.eval().save_pretrained(folder)

# The mechanisms are in the folder, and come back with either call.
with torch.inference_mode():
    expected = model(input_ids=tokens).logits
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        torch.testing.assert_close(load(folder)(input_ids=tokens).logits, expected, rtol=0, atol=0)

prompt = torch.tensor([list(b"Attention ")])
new = exsel.from_pretrained(folder).generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
print(bytes(new[0].tolist()).decode(errors="replace"))
