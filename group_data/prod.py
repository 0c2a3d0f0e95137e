"""Values of inventories/prod.py: which model, which backend image, how the service is asked whether it works."""

lock = "prod"
models = [{"repo": "vidore/colpali-v1.2", "revision": "main"}]
image = "docker-daemon:docai/backend:1.0"
gpus = "all"
# How your backend embeds a query: its URL on the host, its body, and where the vectors are in its answer.
probe = {"url": "http://127.0.0.1:8000/embed", "body": {"query": "{query}"}, "answer": "embedding"}
egress = ["huggingface.co:443", "1.1.1.1:443"]
waves = [1, "10%", "100%"]
