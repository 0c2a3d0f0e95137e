"""What the control machine and the programs on a host both know of the operator's Compose stack, and of our override."""

from __future__ import annotations

# The names of a stack's compose file, in the order in which Compose looks for them.
STACK_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
# The first words of our override. A file without them belongs to somebody else and is never replaced.
MARKER = "# written by hf-offline"
# Two services of our override, beside the operator's own: one tests a release, one loads it on a host that does so itself.
SMOKE, LOADER = "smoke", "hf-model"
# The variable in our override that says where the files of a smoke test lie that has not passed yet.
CANDIDATE = "HF_OFFLINE_CANDIDATE"
# The container's label that names the release it runs.
RELEASE_LABEL = "hf-offline.release"
