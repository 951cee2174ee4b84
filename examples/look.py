"""What the papers describe, seen in a model: how far attention copies a token's own value, and what is left of it."""

import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import exsel

# --8<-- [start:operator]
# z = y − (y·v̂) v̂ has no component along the token's own value.
query, key, value = torch.randn(3, 1, 4, 16, 32, dtype=torch.float64)
y = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
z = exsel.exclude(y, own_value=value)
print(f"largest |y·v| {(y * value).sum(-1).abs().max():.1f}, largest |z·v| {(z * value).sum(-1).abs().max():.0e}")
# --8<-- [end:operator]

# --8<-- [start:diagnose]
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
batches = [torch.randint(0, 256, (2, 64))]
plain = exsel.diagnose(model, batches)
exsel.upgrade(model, exclusive=True, selective=True)
upgraded = exsel.diagnose(model, batches)
# --8<-- [end:diagnose]

# --8<-- [start:read]
for name, diagnosis in (("plain", plain), ("upgraded", upgraded)):
    for layer in diagnosis.layers:
        before, after = (layer["metrics"].get(metric) for metric in ("similarity", "similarity_after"))
        said = f"{name}, {layer['name']}: mean cos(yᵢ, vᵢ) {before['mean']:.2f}"
        print(said if after is None else f"{said}, after the projection {after['mean']:.0e}")
# --8<-- [end:read]

# --8<-- [start:write]
folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
upgraded.write(folder)  # report.html, diagnostics.json, figures
# --8<-- [end:write]
