"""Pre-training on many processes: both mechanisms, divided by FSDP2. Start it with torchrun, as the last line says."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import exsel

# --8<-- [start:build]
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(0)  # every process builds the same weights, and keeps its part of them
config = exsel.ExselConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
    exclusive=True, selective=True,
)  # fmt: skip
model = exsel.ExselForCausalLM(config).to(device)
# --8<-- [end:build]

# --8<-- [start:shard]
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
# --8<-- [end:shard]

# --8<-- [start:train]
text = b"Attention that leaves itself out has more to say about others. " * 8
data = torch.tensor(list(text), device=device).reshape(8, -1)
mine = data[dist.get_rank() :: dist.get_world_size()]  # each process reads sequences of its own
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _ in range(10):
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
# --8<-- [end:train]
assert losses[-1] < losses[0]

# --8<-- [start:save]
weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0:  # the others hold nothing now
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    exsel.ExselForCausalLM(config).save_pretrained(folder, state_dict=weights)
    print(
        f"loss {losses[0]:.2f} → {losses[-1]:.2f} on {dist.get_world_size()} processes; exsel.from_pretrained({folder})"
    )
# --8<-- [end:save]
dist.destroy_process_group()
# torchrun --nproc-per-node 2 examples/pretrain.py FOLDER
