"""Values of inventories/prod.py: which model, which backend, how it is asked whether it works."""

lock = "prod"
models = [{"repo": "vidore/colpali-v1.2", "revision": "main"}]
image = "docker-daemon:docai/backend:1.0"
gpus = "all"
egress = ["huggingface.co:443", "1.1.1.1:443"]
waves = [1, "10%", "100%"]
