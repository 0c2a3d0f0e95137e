"""Values for every inventory; an inventory's own file (prod.py, lab.py) overrides them. docs/settings.md has them all."""

model_store = "/srv/models"
stack = "/srv/docai"
service = "backend"
