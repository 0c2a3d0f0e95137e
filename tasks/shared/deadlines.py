"""How long a host's switch may take at its steps, in seconds. The host ends by these, and the control machine waits for it."""

from __future__ import annotations

# For the way back, at least: a short `health_deadline` is meant for the new release, not for the old one.
REVERT = 300
# For the operator's drain at most, and for their readmit.
COMMAND = 300
