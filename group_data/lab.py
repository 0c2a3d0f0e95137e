"""Values of inventories/lab.py: the tiny replica, on the CPU, from the lab's own Hub."""

lock = "lab"
models = [{"repo": "docai/colpali-tiny", "revision": "main"}]
image = "docker-daemon:docai/backend:1.0"
hub = "https://lab-hub"
python = "/opt/venv/bin/python"
dtype = "float32"
gpus = 0
egress = ["lab-hub:443", "10.77.1.5:443"]
waves = [1, "100%"]
soak = 2
probe = {"url": "http://127.0.0.1:8000/embed", "body": {"query": "{query}"}, "answer": "embedding"}
